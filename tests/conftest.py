"""Fixtures that many tests share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import aioice.ice
import openmp  # noqa: F401 - sets OMP_WAIT_POLICY, which must stand before anything imports torch
import pytest
import tolerances  # noqa: F401 - sets TRITON_INTERPRET, which must stand before anything imports Triton
import torch

# A shell that starts the tests behind `nohup` or `&` has them ignored, and the processes that tests signal inherit it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Gives torch its threads back: an engine of a test chooses their number, and bits depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loopback() -> Iterator[None]:
    """Keeps ICE of this process on loopback, and gives it back its own addresses afterwards."""
    original = aioice.ice.get_host_addresses
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"] if use_ipv4 else []
    yield
    aioice.ice.get_host_addresses = original


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release at tiny size, with its text encoders. Not to be changed."""
    import checkpoint

    folder = tmp_path_factory.mktemp("published")
    checkpoint.make_folder(folder)
    checkpoint.make_texts(folder)
    return folder
