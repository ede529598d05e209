"""A linear layer of 4-bit weights with a low-rank branch (SVDQuant); `reference.py` is what it means, `dexport::lowrank_linear`."""
