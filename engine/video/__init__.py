"""Videos as files: read, written, and turned into semantic tokens and back."""
