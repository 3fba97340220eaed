"""The published autoencoder."""
