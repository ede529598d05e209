"""Operations of our own: meaning, CUDA kernel, TensorRT plugin; one folder per operation."""
