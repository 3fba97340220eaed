"""Other servers, beside ours in one run, with the same film."""

from streaming.bench.peers.race import PEERS, measure

__all__ = ["PEERS", "measure"]
