"""Joining the other ranks, and agreeing with them before anything is made.

Messages between processes go over gloo; tensors of ranks that render together go over NCCL between GPUs.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

READY_S = 1800.0  # until all ranks are there and have loaded what they need
SILENCE = "LANDIFF_RANK_SILENCE_S"  # environment variable: seconds that one rank may keep the others waiting
SILENCE_S = 600.0  # if it says nothing: longer than a chunk takes, or kernels to compile
# A rank waits for work as long as nobody watches; one that ends is noticed at once.
_IDLE = timedelta(days=365)
_LOOPBACK = "127.0.0.1"
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


class RankError(RuntimeError):
    """Another rank ended or was silent for too long: none of them can go on."""


@dataclass(frozen=True, slots=True)
class RankPlace:
    """A process's number among the ranks, and where they meet."""

    rank: int
    ranks: int
    local: int  # its number among those of this machine, which is the number of its GPU
    local_ranks: int
    port: int | None  # of the store that rank 0 has on this machine; None where torchrun says where they meet

    @classmethod
    def from_environment(cls) -> RankPlace:
        """What torchrun says. Raises ValueError if a variable of it is missing."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        missing = [name for name in names if not os.environ.get(name, "").isdigit()]
        if missing:
            raise ValueError(f"{', '.join(missing)} not set in the environment: start all ranks with torchrun")
        rank, ranks, local, local_ranks = (int(os.environ[name]) for name in names)
        return cls(rank, ranks, local, local_ranks, None)

    def take_device(self, name: str, first: int = 0) -> None:
        """Takes the rank's own GPU, or its share of the CPU's cores.

        Args:
            name: 'auto', 'cpu' or 'cuda'.
            first: GPUs that are others'.

        Raises:
            ValueError: there are fewer GPUs than ranks on this machine.
        """
        if name == "cpu" or not torch.cuda.is_available():
            torch.set_num_threads(max(1, torch.get_num_threads() // self.local_ranks))
            return
        if torch.cuda.device_count() < first + self.local_ranks:
            raise ValueError(
                f"{self.local_ranks} ranks behind {first} GPUs of others on this machine, which has "
                f"{torch.cuda.device_count()}: give fewer"
            )
        torch.cuda.set_device(first + self.local)


def silence_s() -> float:
    """How long one rank may keep the others waiting. Raises ValueError if the environment says no such number."""
    said = os.environ.get(SILENCE, "")
    if not said:
        return SILENCE_S
    with suppress(ValueError):
        if 0 < float(said) < float("inf"):
            return float(said)
    raise ValueError(f"{SILENCE}={said!r} is not a number of seconds above 0")


def new_store(ranks: int) -> TCPStore:
    """Where the ranks of this machine meet; rank 0 holds it, at a port that was free."""
    return TCPStore(_LOOPBACK, 0, ranks, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=READY_S))


@contextmanager
def joined(place: RankPlace, store: Store | None = None) -> Iterator[None]:
    """Inside, this process is one of the ranks.

    Args:
        store: of rank 0, where ranks were started by it.

    Raises:
        RankError: the others did not come.
    """
    timeout = timedelta(seconds=READY_S)
    if place.port is not None:
        # Otherwise gloo asks for the address of the host's name, which may be none.
        os.environ.setdefault(_GLOO_INTERFACE, "lo")
        if store is None:
            wait = timedelta(seconds=READY_S)
            store = TCPStore(_LOOPBACK, place.port, place.ranks, wait_for_workers=False, timeout=wait)
    with talking(place.rank):
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.ranks, timeout=timeout)
    try:
        yield
    finally:
        with suppress(RuntimeError):  # of those that are gone already
            dist.destroy_process_group()


@contextmanager
def talking(rank: int) -> Iterator[None]:
    """Turns what torch says about a broken or silent connection into a RankError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RankError(
            f"rank {rank} has lost the others: one of them ended, or was silent for {silence_s():g} s ({reason})"
        ) from error


def send(message: Any, to: int) -> None:
    """Hands a record of tensors on the host to another rank; returns when that one takes it. Raises RankError."""
    words = torch.frombuffer(bytearray(pickle.dumps(message)), dtype=torch.uint8)
    limit = timedelta(seconds=silence_s())
    with talking(dist.get_rank()):
        for part in (torch.tensor([len(words)]), words):
            _wait(dist.isend(part, dst=to), limit)


def receive(sender: int, idle: bool = False) -> Any:
    """Waits for what another rank sends, as long as it takes if that one may be `idle`. Raises RankError."""
    length = torch.zeros(1, dtype=torch.int64)
    limit = timedelta(seconds=silence_s())
    with talking(dist.get_rank()):
        _wait(dist.irecv(length, src=sender), _IDLE if idle else limit)
        words = torch.empty(int(length), dtype=torch.uint8)
        _wait(dist.irecv(words, src=sender), limit)
    return pickle.loads(words.numpy().tobytes())


def _wait(work: dist.Work | None, limit: timedelta) -> None:
    assert work is not None, "this rank is one of them"
    work.wait(limit)
