"""What crosses the border of the engine process; imports no torch."""
