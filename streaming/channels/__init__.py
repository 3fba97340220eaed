"""Channels on air, their prompts, events and figures."""
