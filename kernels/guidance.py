"""One step of the renderer's sampler after the network: prediction to x0, guidance, solver update (FACTS 3.6 to 3.8).

Everything a step's numbers depend on stands in one row of a device table made before the loop, so that a step needs no
host arithmetic and can be captured in a CUDA graph. Shapes: `G` 1 or 2 guidance rows, `S` steps.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import Tile, expect_dtype, expect_shape, tile

# Columns of the table: clean = skip x + out output; x0 = clean_0 + scale (clean_1 - clean_0);
# next = keep x - pull (mix x0 - mix_previous x0_before) + spread noise.
COLUMNS = ("skip", "out", "scale", "keep", "pull", "mix", "mix_previous", "spread")
USUAL = Tile(1024, 4)


@jit
def guided_step_kernel(
    x: operand,
    outputs: operand,
    coefficients: operand,
    step: operand,
    previous: operand,
    noise: operand,
    following: operand,
    denoised: operand,
    size: operand,
    GUIDED: constexpr,
    BLOCK: constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    row = coefficients + tl.load(step) * 8
    skip, out, scale, keep = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    pull, mix, mix_previous, spread = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    now = tl.load(x + place, mask=mask, other=0.0)
    clean = out * tl.load(outputs + place, mask=mask, other=0.0).to(tl.float32) + skip * now
    if GUIDED:
        prompted = out * tl.load(outputs + size + place, mask=mask, other=0.0).to(tl.float32) + skip * now
        clean = clean + scale * (prompted - clean)
    direction = mix * clean
    # A weight of zero means that the operand does not exist yet; its memory may hold anything.
    if previous is not None:
        if mix_previous != 0.0:
            direction -= mix_previous * tl.load(previous + place, mask=mask, other=0.0)
    result = keep * now - pull * direction
    if noise is not None:
        if spread != 0.0:
            result += spread * tl.load(noise + place, mask=mask, other=0.0)
    tl.store(following + place, result, mask=mask)
    tl.store(denoised + place, clean, mask=mask)


def guided_step(
    x: Tensor,
    outputs: Tensor,
    coefficients: Tensor,
    step: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Network output to the next x, each operand read once, all arithmetic in float32.

    Args:
        x: [...] float32, dense: the noisy latents.
        outputs: [G, ...] float, dense: the network's output, without the prompt and with it; only with it if G is 1.
        coefficients: [S, 8] float32, columns as `COLUMNS`; where there is no operand yet, its weight must be 0.
        step: [1] int64 in 0..S-1, on the device.
        previous: as `x`: x0 of the step before, None for solvers of one step.
        noise: as `x`, None for solvers without.

    Returns:
        (next x, x0), each as `x`; new memory.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit.
    """
    operands = {"x": x, "coefficients": coefficients, "step": step, "outputs": outputs}
    expect_dtype("x", x, (torch.float32,))
    if outputs.ndim != x.ndim + 1 or outputs.shape[0] not in (1, 2) or outputs.shape[1:] != x.shape:
        raise ValueError(f"outputs must have shape (1 or 2, *{tuple(x.shape)}), not {tuple(outputs.shape)}")
    expect_dtype("outputs", outputs)
    expect_shape("coefficients", coefficients, (coefficients.shape[0], len(COLUMNS)))
    expect_dtype("coefficients", coefficients, (torch.float32,))
    expect_shape("step", step, (1,))
    expect_dtype("step", step, (torch.int64,))
    for name, tensor in (("previous", previous), ("noise", noise)):
        if tensor is not None:
            expect_shape(name, tensor, x.shape)
            expect_dtype(name, tensor, (torch.float32,))
            operands[name] = tensor
    for name, tensor in operands.items():
        if not tensor.is_contiguous() or tensor.numel() == 0 or tensor.device != x.device:
            raise ValueError(
                f"{name} must be dense, not empty and on {x.device}, not {tensor.stride()}, {tensor.device}"
            )
    return dispatch(backend, _guided_step, reference.guided_step, x, outputs, coefficients, step, previous, noise)


def _guided_step(
    x: Tensor, outputs: Tensor, coefficients: Tensor, step: Tensor, previous: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    following, denoised = torch.empty_like(x), torch.empty_like(x)
    part = tile("guided_step", x.numel(), x.device, USUAL)
    start(
        guided_step_kernel,
        (-(-x.numel() // part.elements),),
        *(x, outputs, coefficients, step, previous, noise, following, denoised, x.numel()),
        warps=part.warps,
        GUIDED=outputs.shape[0] == 2,
        BLOCK=part.elements,
    )
    return following, denoised


def guided_step_bound(
    x: Tensor, outputs: Tensor, coefficients: Tensor, step: Tensor, previous: Tensor | None, noise: Tensor | None
) -> Bound:
    """Each operand read once, next x and x0 written once; 3 operations a guidance row, then 7 an element."""
    extra = sum(tensor.nbytes for tensor in (previous, noise) if tensor is not None)
    return Bound(3 * x.nbytes + outputs.nbytes + extra, (3 * outputs.shape[0] + 7) * x.numel())
