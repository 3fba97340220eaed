"""The perceptual half of the model: condition, renderer and autoencoders."""
