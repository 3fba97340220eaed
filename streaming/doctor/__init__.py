"""What works here, in words, each with its cure where it does not."""
