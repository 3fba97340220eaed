"""Routes, request checks and WHEP texts."""
