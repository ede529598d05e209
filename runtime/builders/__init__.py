"""What turns ONNX files into engines, one file per backend, on the machine that exports or on the device: needs neither torch nor onnx."""
