"""Equality with the published model: every golden case, and the release's own way to one window."""
