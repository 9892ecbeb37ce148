"""Kernels: attention over slots for CPU and CUDA, and which of them can be had."""
