"""One model on several devices: `layout.py` says who owns what, `sharded_decoder.py` computes with it."""
