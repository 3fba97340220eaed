"""Weights files: the published layout and names, conversion to our own, downloads, and filling of modules."""
