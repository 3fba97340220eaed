"""Cost of the engine's stages, beside public libraries' models at the same sizes."""
