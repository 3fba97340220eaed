"""Several processes, a GPU each, that make one video together."""
