"""Attention with quantized operands and probabilities; `reference.py` is its meaning and registers `dexport::quantized_attention`."""
