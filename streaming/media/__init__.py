"""Frames to packets: clock, encoders, viewers."""
