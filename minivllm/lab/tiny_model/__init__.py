"""How the shipped model was made: its corpus, its tokenizer, its training.

The model itself lies in `minivllm/model/tiny`; nothing of this is needed to run it. Read in this order:
`corpus`, `tokenizer`, `train`, `checkpoint`.
"""
