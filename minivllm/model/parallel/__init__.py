"""One model on several devices: `layout.py` says what each owns, `sharded_decoder.py` computes with it."""
