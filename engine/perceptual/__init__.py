"""How the video looks: condition, renderer and autoencoder."""
