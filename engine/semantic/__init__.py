"""What happens in the video: features, tokens and the planner."""
