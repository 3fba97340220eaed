"""The engine process: torch lives here; no network and no codec."""
