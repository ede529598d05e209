"""Attention over chosen blocks of keys; `reference.py` is its meaning and registers `dexport::block_sparse_attention`."""
