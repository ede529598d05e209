"""A kit becomes a finished bundle on the device where it will run, from there or over ssh; needs neither torch nor onnx.

`finalize` is the path in order; `remote` does the same on another machine.
"""
