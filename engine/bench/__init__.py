"""What the engine costs, beside public libraries at the same sizes and as the video grows."""
