"""Tensor operations with no library call of their own: FIR resampling."""
