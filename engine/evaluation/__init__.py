"""Quality figures of preset `mini`."""
