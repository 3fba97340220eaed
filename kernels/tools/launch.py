"""Dispatch between a Triton kernel and its reference in torch, and the start of kernels.

Imports without Triton: `jit` then leaves functions as they are and every operation runs its reference. So it does where
nothing can use Triton, which takes 80 MB of memory: it is loaded for a CUDA device, for its interpreter, where it is
ordered, and for a program that loads it first.
"""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

PREFERENCE = "LANDIFF_KERNELS"  # environment variable: one of `BACKENDS`, for every operation that is not told
USED = (
    torch.cuda.is_available()
    or "triton" in sys.modules
    or os.environ.get(PREFERENCE) == "triton"
    or os.environ.get("TRITON_INTERPRET") == "1"
)

try:
    if not USED:
        raise ImportError
    import triton
    import triton.language as tl
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError
except ImportError:
    triton = None
    tl = None


# Annotations inside kernels; Triton looks them up in its own language, so `Any` will not do.
if TYPE_CHECKING:
    constexpr: TypeAlias = Any
    operand: TypeAlias = Any
else:
    constexpr = object if tl is None else tl.constexpr
    operand = object if tl is None else tl.tensor

__all__ = [
    "Backend",
    "Bound",
    "Launch",
    "Uncovered",
    "constexpr",
    "dispatch",
    "interpreting",
    "jit",
    "operand",
    "preferring",
    "recording",
    "start",
    "tl",
]

Backend = Literal["auto", "triton", "reference"]
P = ParamSpec("P")
T = TypeVar("T")

BACKENDS = ("auto", "triton", "reference")
EVERY = "every operation"  # in warnings
LOWEST_CAPABILITY = (8, 0)  # bf16 arithmetic begins here
# Kernels are bound to the interpreter or the compiler when they are decorated, so this never changes later.
INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bound:
    """The least that an operation costs: memory traffic with each operand moved once, and arithmetic."""

    bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel start, as `compile` reads it."""

    kernel: Any
    arguments: tuple[Tensor | int | float | None, ...]
    constants: Mapping[str, int | bool]
    warps: int


class Uncovered(Exception):
    """A kernel has no tile for a shape that the reference can do."""


# Beside that: a device has too little of something for a kernel, or the compiler does not know the device.
UNFIT = (Uncovered,) if triton is None else (Uncovered, OutOfResources, PTXASError, CompilationError)


_recorder: ContextVar[list[Launch] | None] = ContextVar("recorder", default=None)


def _from_environment() -> Backend:
    wanted = os.environ.get(PREFERENCE, "auto")
    if wanted not in BACKENDS:
        raise ValueError(f"{PREFERENCE} must be {' or '.join(map(repr, BACKENDS))}, not {wanted!r}")
    return cast(Backend, wanted)


_ordered: Backend = _from_environment()
_preferred: ContextVar[Backend] = ContextVar("preferred", default=_ordered)


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function itself where there is no Triton."""
    return function if triton is None else triton.jit(function)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Kernel starts inside are listed, not run; operands may live on the meta device."""
    launches: list[Launch] = []
    token = _recorder.set(launches)
    try:
        yield launches
    finally:
        _recorder.reset(token)


@contextlib.contextmanager
def preferring(backend: Backend) -> Iterator[None]:
    """Inside, `backend` stands for what the environment variable says."""
    token = _preferred.set(backend)
    try:
        yield
    finally:
        _preferred.reset(token)


def interpreting() -> bool:
    """True if operations on the CPU shall run under Triton's interpreter, of which a CPU trace would see nothing."""
    return INTERPRETED and _preferred.get() == "triton"


@functools.cache
def unsupported_reason(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on tensors of `device`; None where they can."""
    if triton is None and USED:
        return "Triton is not installed"
    if device.type == "cpu":
        return None if INTERPRETED else "the tensors are on the CPU and TRITON_INTERPRET=1 was not set at import"
    if device.type != "cuda":
        return f"there are no kernels for device type '{device.type}'"
    capability = torch.cuda.get_device_capability(device)
    if capability < LOWEST_CAPABILITY:
        return f"the device has compute capability {capability}, the kernels need {LOWEST_CAPABILITY}"
    try:
        _try_out(device)
    except Exception as error:  # Triton raises whatever its build steps met: no compiler, no libcuda, a chip too new
        return f"Triton cannot run a kernel on it ({type(error).__name__}: {error})"
    return None


def _try_out(device: torch.device) -> None:
    """Builds and runs the smallest kernel."""
    with torch.cuda.device(device):
        triton.runtime.driver.active.get_current_target()
        _probe_kernel[(1,)](torch.empty(1, device=device), enable_fp_fusion=True)
        torch.cuda.synchronize(device)


@jit
def _probe_kernel(out: operand) -> None:
    tl.store(out, 1.0)


@functools.cache
def _warn_once(name: str, reason: str) -> None:
    logger.warning("%s runs its reference, slower: %s", name, reason)


def dispatch(backend: Backend, fused: Callable[P, T], plain: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `fused` where Triton can, `plain` elsewhere; the first operand is a tensor and names the device.

    Kernels have no backward pass: where an operand requires a gradient "auto" takes `plain`, which has. So it does
    under torch.compile, which fuses operations of torch by itself.

    Args:
        backend: "auto" takes Triton on CUDA, and also on the CPU if the environment variable says "triton"; nowhere
            if that says "reference". "triton" and "reference" are orders.

    Raises:
        ValueError: Triton was ordered, here or by the environment, and cannot run, or the backend is unknown.
    """
    first = args[0]
    assert isinstance(first, Tensor)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be {' or '.join(map(repr, BACKENDS))}, not {backend!r}")
    preferred = _preferred.get()
    learning = torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in args)
    off = learning or preferred == "reference" or (preferred == "auto" and not first.is_cuda)
    if backend == "reference" or (backend == "auto" and off) or torch.compiler.is_compiling():
        return plain(*args, **kwargs)
    reason = None if _recorder.get() is not None else unsupported_reason(first.device)
    if reason is not None and backend == "auto":
        if preferred == "triton":
            raise ValueError(f"{PREFERENCE}=triton cannot run: {reason}; 'auto' and 'reference' can")
        # What is true of the device is said once, not by every operation.
        _warn_once(EVERY, reason)
        return plain(*args, **kwargs)
    if learning:
        reason = "an operand requires a gradient, which kernels do not give"
    if reason is None:
        try:
            return fused(*args, **kwargs)
        except UNFIT as error:
            reason = str(error)
    if backend == "triton":
        raise ValueError(f"backend 'triton' cannot run {fused.__name__.strip('_')}: {reason}; 'reference' can")
    _warn_once(fused.__name__.strip("_"), reason)
    return plain(*args, **kwargs)


def start(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Tensor | int | float | None,
    warps: int = 4,
    **constants: int | bool,
) -> None:
    """Starts `kernel` on the device of its first operand, or lists it inside `recording`."""
    launches = _recorder.get()
    if launches is not None:
        launches.append(Launch(kernel, arguments, constants, warps))
        return
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device(first.device.index if first.is_cuda else -1):
        # Stated, since Triton changes what it does by default.
        kernel[grid](*arguments, num_warps=warps, enable_fp_fusion=True, **constants)
