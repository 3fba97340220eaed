"""Latency figures, as a viewer sees them."""
