"""How tensor functions run: attention, layers, caches, CUDA graphs, CPU traces, packed and 8-bit weights."""
