"""What every kernel shares: dispatch, tiles, choices kept on disk, cases."""
