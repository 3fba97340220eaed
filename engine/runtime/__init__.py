"""Execution of tensor functions: attention, layers, caches, CUDA graphs, CPU traces, packed and 8-bit weights."""
