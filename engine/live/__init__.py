"""The line from prompt to frame batches, and the process that runs it."""
