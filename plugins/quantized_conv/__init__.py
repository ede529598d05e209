"""A convolution with quantized weights and activations; `reference.py` is its meaning and registers `dexport::quantized_conv`."""
