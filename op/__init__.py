"""Tensor operations with no library call of their own, as native PyTorch and as Triton kernels."""
