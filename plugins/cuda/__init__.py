"""Device primitives that CUDA kernels are written against; `primitives.h` says what they are and what their emulation can show."""
