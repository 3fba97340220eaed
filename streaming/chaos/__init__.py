"""Faults at random under a seed, while a viewer checks that the video goes on."""
