"""Shared by all kernels: dispatch, tiles, choices kept on disk, cases."""
