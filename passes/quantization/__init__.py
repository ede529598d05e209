"""Quantization: statistics and a recipe turn a graph into one with dialect operations.

sites.py        what can be quantized          statistics.py   what calibration saw
recipe.py       what a user asks for           decide.py       recipe + statistics -> values per site
quantize.py     values -> a new graph          one file per method beside them
"""
