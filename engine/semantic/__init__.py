"""The semantic half of the model: features, tokens and the planner."""
