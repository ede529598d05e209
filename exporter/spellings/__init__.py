"""Spellings: how operations are written in ONNX so that the backends' compilers find their fast kernels.

A spelling keeps the meaning of the operation exactly; only the form differs between backends. `aten.py` writes PyTorch's
operations, `dialect.py` carries dexport's own into the ONNX graph, and `quantized.py` replaces them there by the form of one
backend. `tests/exporter/spellings` holds the proof: results against the meaning, and the kernels that each compiler chose.
"""
