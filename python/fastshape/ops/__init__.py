"""The kernels: tensors in, tensors out. Every operator runs on the CPU and on CUDA with the same results."""
