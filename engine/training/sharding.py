"""One training on several processes, one device each, as torchrun starts them.

Transformer blocks are sharded by FSDP2, the few other parameters are copies whose gradients are averaged. Every process
sees samples of its own; clock, buffers, figures and files are those of the first. In a single process nothing here does
anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

LEAVE_TIMEOUT = timedelta(seconds=10)


def begin(device: str) -> None:
    """Joins the processes that torchrun started, if it did.

    Args:
        device: 'cuda' or 'cpu'; of several GPUs each process takes its own.
    """
    if "LOCAL_RANK" not in os.environ:
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")


def end() -> None:
    """Leaves them, on CPUs all at once: a process whose peers are gone before it has closed may abort."""
    if not dist.is_initialized():
        return
    if dist.get_backend() == "gloo":
        # One that failed does not come; torchrun stops the others.
        with suppress(RuntimeError):
            dist.monitored_barrier(timeout=LEAVE_TIMEOUT)
    dist.destroy_process_group()


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if dist.is_initialized() else 0


def agreed(value: float) -> float:
    """The first process' value: all must end, save and judge at the same step."""
    if size() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.broadcast(shared, 0)
    return shared.item()


def shard(module: nn.Module) -> None:
    """Splits the parameters of every block; `state_dict` gives whole tensors all the same."""
    if size() == 1:
        return
    for block in _blocks(module):
        fully_shard(block)
        block.register_state_dict_post_hook(_whole)


def _blocks(module: nn.Module) -> Iterable[nn.Module]:
    """The members of the outermost lists that hold something to train or to keep."""
    if isinstance(module, nn.ModuleList):
        yield from (block for block in module if any(True for _ in block.parameters()))
        return
    for child in module.children():
        yield from _blocks(child)


def _whole(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for key, value in state.items():
        if key.startswith(prefix):
            state[key] = gathered(value)


def gathered(tree: Any) -> Any:
    """Tensors in dicts and lists, whole. Every process has to call it."""
    if isinstance(tree, DTensor):
        return tree.full_tensor()
    if isinstance(tree, dict):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gathered(value) for value in tree]
    return tree


def scattered(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, split as `like` is."""
    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole


@torch.no_grad()
def load_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    """As `load_state_dict`, which it is for one process, from whole tensors.

    Raises:
        RuntimeError: if names or shapes differ.
    """
    if size() == 1:
        module.load_state_dict(state)
        return
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        raise RuntimeError("names or shapes differ")
    for name, tensor in own.items():
        tensor.copy_(scattered(state[name], tensor))


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """As `load_state_dict`, from whole tensors.

    Raises:
        ValueError: if it is of other parameters.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    own = {
        number: {
            name: scattered(value, parameters[number]) if value.shape == parameters[number].shape else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": own})


@torch.no_grad()
def settle(module: nn.Module, most: float) -> None:
    """After `backward`: averages what FSDP does not, and cuts all gradients to a norm of at most `most`."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if size() == 1:
        nn.utils.clip_grad_norm_([parameter for parameter in module.parameters() if parameter.grad is not None], most)
        return
    own = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    shared = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    square = torch.stack([part.square().sum() for part in own]).sum() if own else torch.zeros((), device=_device())
    dist.all_reduce(square)
    for gradient in shared:
        dist.all_reduce(gradient)
        gradient /= size()
        square += gradient.square().sum()
    scale = most / (square.sqrt() + 1e-6)
    for gradient in (*own, *shared):
        gradient *= scale.clamp(max=1.0)
    for buffer in module.buffers():
        dist.broadcast(buffer, 0)


def step_of(step: int) -> int:
    """The number that a process' samples of a step are drawn from, different in every process."""
    return step * size() + rank()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
