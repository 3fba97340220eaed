"""One file a training stage."""
