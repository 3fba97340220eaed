"""Messages, settings and frames between server and engine process; imports no torch."""
