"""Fused operations in Triton, each beside its fp32 reference in plain PyTorch.

Kept free of imports: transformers looks for a module of this name and imports what it finds.
"""

__version__ = "0.0.0"  # asked for by transformers' look-up of Hugging Face's package of the same name
