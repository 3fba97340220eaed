"""Training of every stage, the drawn world it learns from, and its evaluation."""
