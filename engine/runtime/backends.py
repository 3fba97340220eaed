"""Backends of attention: a choice, once at load, of the fastest one that runs on a device and is right.

`engine.runtime.attention.attend` takes what `choose` found. On a CPU nothing is timed: torch's own order stands, so
that a video never depends on how busy the machine was. On CUDA the choice is kept on disk
(`kernels.tools.memo`) for the same reason. Shapes: `B` batch, `H` heads, `N` tokens, `D` head width.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.tools import memo

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

AttentionFunction = Callable[[Tensor, Tensor, Tensor, bool], Tensor]  # q, k, v, causal
Timer = Callable[[Callable[[], Any]], float]  # seconds that one call takes

FORCED = "LANDIFF_ATTENTION"  # environment variable: a name of `BACKENDS`, or "auto"
SUBJECT = "attention"  # of `memo`
PROBED_TOKENS = 192  # enough to show wrong numbers, few enough for a float32 reference anywhere
WARM_UPS, ROUNDS = 3, 10
RECOMPILE_LIMIT = 64
# Largest relative error against float32, of the root mean squares: some four roundings of each type.
_ALLOWED = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # float32 may go through TF32

_SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that `attend` takes on a device for some calls."""

    name: str  # one of `BACKENDS`, or "torch" for the order of torch's own
    seconds: float | None  # a call at the shape asked for; None if it was not timed
    dtype: torch.dtype
    width: int  # of a head

    def serves(self, q: Tensor) -> bool:
        """True if a call with these queries is of the kind that was tried."""
        return self.name != "torch" and q.dtype == self.dtype and q.shape[-1] == self.width and not q.requires_grad


_choices: dict[str, Choice] = {}  # by device type, of which a process has two at most


def choose(
    device: torch.device,
    dtype: torch.dtype,
    shape: Sequence[int],
    forced: str | None = None,
    timer: Timer | None = None,
) -> Choice:
    """Decides, and logs, what `attend` takes on a device for heads of this width and type.

    Calls of another kind take torch's own order.

    Args:
        shape: [B, H, N, D] of the call that costs most; it is what is timed.
        forced: a name of `BACKENDS`; None for what the environment variable says, if it says anything.
        timer: of calls, to be given by tests; torch's synchronised clock if None.

    Raises:
        ValueError: what is forced is unknown or cannot run; it names those that can.
    """
    name = forced or os.environ.get(FORCED, "auto")
    width = shape[-1]
    if name != "auto":
        choice = _forced(name, device, dtype, width)
    elif device.type == "cpu":
        choice = Choice("torch", None, dtype, width)
    else:
        choice = _recalled(device, dtype, shape) or _fastest(device, dtype, shape, timer or _seconds)
    _choices[device.type] = choice
    took = "" if choice.seconds is None else f", {1e3 * choice.seconds:.2f} ms a call of {list(shape)}"
    logger.info("attention on %s in %s: %s%s", device, dtype, choice.name, took)
    return choice


def chosen(q: Tensor) -> AttentionFunction | None:
    """The backend that was chosen for calls with such queries; None where torch's own order stands."""
    choice = _choices.get(q.device.type)
    return _WITH_FALLBACK[choice.name] if choice is not None and choice.serves(q) else None


@functools.cache
def unsupported_reason(name: str, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Why a backend cannot attend there with heads of this width; None if it can, and is right."""
    generator, shape = torch.Generator().manual_seed(0), (2, 2, PROBED_TOKENS, width)
    q, k, v = (torch.randn(shape, generator=generator, device="cpu").to(device, dtype) for _ in range(3))
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        try:
            for causal in (False, True):
                truth = attention_reference(q.float(), k.float(), v.float(), None, causal)
                error = (_RUNS[name](q, k, v, causal).float() - truth).pow(2).mean().sqrt() / truth.pow(2).mean().sqrt()
                if not float(error) <= _ALLOWED[dtype]:
                    return f"its results are off by {float(error):.1e}, {_ALLOWED[dtype]:.0e} is allowed"
        except Exception as error:  # each library fails in its own way: to load, to compile, to find a kernel
            # torch says why in warnings and raises without it.
            reasons = str(error) or type(error).__name__, *(str(warning.message) for warning in told)
            return " ".join("; ".join(reasons).split())
    return None


def _forced(name: str, device: torch.device, dtype: torch.dtype, width: int) -> Choice:
    reason = f"there is no such backend; known are {', '.join(BACKENDS)}"
    if name in BACKENDS:
        found = unsupported_reason(name, device, dtype, width)
        if found is None:
            return Choice(name, None, dtype, width)
        reason = found
    able = [other for other in BACKENDS if unsupported_reason(other, device, dtype, width) is None]
    raise ValueError(f"attention {name!r} cannot run on {device}, {dtype}: {reason}. Those that can: {', '.join(able)}")


def _fastest(device: torch.device, dtype: torch.dtype, shape: Sequence[int], timer: Timer) -> Choice:
    """Times every backend that runs and is right, `math` only if it is alone: it writes out all scores."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(*shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    took: dict[str, float] = {}
    for name in BACKENDS:
        if name == "math" and took:
            continue
        reason = unsupported_reason(name, device, dtype, shape[-1])
        if reason is not None:
            installed = name == "xformers" and importlib.util.find_spec("xformers") is not None
            logger.log(logging.WARNING if installed else logging.INFO, "attention %s cannot run: %s", name, reason)
            continue
        try:
            with torch.no_grad():
                took[name] = timer(functools.partial(_RUNS[name], q, k, v, False))
        except torch.OutOfMemoryError as error:
            logger.info("attention %s cannot run at %s: %s", name, list(shape), error)
    if not took:
        return Choice("torch", None, dtype, shape[-1])
    name = min(took, key=took.__getitem__)
    memo.remember(SUBJECT, device, {_memo_key(dtype, shape): {"name": name, "seconds": took[name]}})
    return Choice(name, took[name], dtype, shape[-1])


def _recalled(device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Choice | None:
    """The choice of an earlier process, as long as it still runs."""
    entry = memo.recall(SUBJECT, device).get(_memo_key(dtype, shape))
    if not isinstance(entry, dict) or entry.get("name") not in BACKENDS:
        return None
    if unsupported_reason(entry["name"], device, dtype, shape[-1]) is not None:
        return None
    return Choice(entry["name"], float(entry["seconds"]), dtype, shape[-1])


def _memo_key(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{dtype} {list(shape)}"


def _seconds(call: Callable[[], Any]) -> float:
    """Median time of a call on the current CUDA device."""
    for _ in range(WARM_UPS):
        call()
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention with all scores written out; a mask says who may attend, or is added to the scores."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    out: Tensor = scores.softmax(dim=-1) @ v
    return out


def _by_sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, backends: list[SDPBackend]) -> Tensor:
    """torch's attention with the first of some of its backends that can."""
    with sdpa_kernel(backends, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _by_xformers(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    library = importlib.import_module("xformers.ops")
    bias = library.LowerTriangularMask() if causal else None
    turned = (x.transpose(1, 2) for x in (q, k, v))
    return cast(Tensor, library.memory_efficient_attention(*turned, attn_bias=bias).transpose(1, 2))


def _by_flex(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return flex(q.device.type)(q, k, v, block_mask=_causal_blocks(q.shape[2], q.device) if causal else None)


@functools.cache
def flex(device_type: str) -> Callable[..., Tensor]:
    """FlexAttention: compiled, once for all lengths, on CUDA; written out by torch elsewhere, which only tests want."""
    from torch.nn.attention.flex_attention import flex_attention

    run = cast(Callable[..., Tensor], flex_attention)
    if device_type != "cuda":
        return run
    # One program a rule, type and batch. Past the limit, 8 by default, all scores would be written out.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    return torch.compile(run, dynamic=True)


@functools.lru_cache(maxsize=4)
def _causal_blocks(tokens: int, device: torch.device) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda batch, head, query, key: query >= key, None, None, tokens, tokens, device.type)


_STRICT = {name: functools.partial(_by_sdpa, backends=[backend]) for name, backend in _SDPA.items()}
_RUNS: dict[str, AttentionFunction] = {"xformers": _by_xformers, **_STRICT, "flex": _by_flex}
BACKENDS = tuple(_RUNS)
# At work a backend of torch's may hand a call it does not cover to the next one.
_LENIENT = {
    name: functools.partial(_by_sdpa, backends=[backend, *(other for other in _SDPA.values() if other != backend)])
    for name, backend in _SDPA.items()
}
_WITH_FALLBACK: dict[str, AttentionFunction] = {**_RUNS, **_LENIENT}
