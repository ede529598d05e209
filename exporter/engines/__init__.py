"""ONNX to what a backend loads, one file per backend."""
