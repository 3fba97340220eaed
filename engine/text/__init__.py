"""Text encoders of the presets."""
