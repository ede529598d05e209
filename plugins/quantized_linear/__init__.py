"""A linear layer with quantized weights and activations; `reference.py` is its meaning and registers `dexport::quantized_linear`."""
