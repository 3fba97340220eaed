"""The drawn world that preset `mini` learns, its captions and its judge."""
