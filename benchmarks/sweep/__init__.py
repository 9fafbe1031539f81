"""The sweep behind the tuned values of configs/pretrain_small.py."""
