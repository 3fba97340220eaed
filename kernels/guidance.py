"""A sampler step after the network: prediction to x0, guidance, solver update (REFERENCE 3.6 to 3.8).

All numbers of a step stand in one row on the device, made before the loop, so that a step needs no host arithmetic and
one captured graph serves all steps. Shapes: `G` 1 or 2 guidance rows.
"""

import torch
from torch import Tensor

from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import Tile, expect_dtype, expect_floats, expect_shape

# A step's coefficients: estimate = skip x + out output; x0 = estimate_0 + scale (estimate_1 - estimate_0);
# next x = coef_x x - coef_x0 (mix x0 - mix_previous x0_before) + coef_noise noise.
COEFFICIENTS = ("skip", "out", "scale", "coef_x", "coef_x0", "mix", "mix_previous", "coef_noise")
TILE = Tile(1024, 4)


@jit
def guided_step_kernel(
    x: operand,
    outputs: operand,
    coefficients: operand,
    previous: operand,
    noise: operand,
    next_x: operand,
    denoised: operand,
    size: operand,
    GUIDED: constexpr,
    BLOCK: constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    row = coefficients
    skip, out, scale, coef_x = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    coef_x0, mix, mix_previous, coef_noise = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    now = tl.load(x + place, mask=mask, other=0.0)
    clean = out * tl.load(outputs + place, mask=mask, other=0.0).to(tl.float32) + skip * now
    if GUIDED:
        with_text = out * tl.load(outputs + size + place, mask=mask, other=0.0).to(tl.float32) + skip * now
        clean = clean + scale * (with_text - clean)
    direction = mix * clean
    # A weight of zero means that the operand does not exist yet; its memory may hold anything.
    if previous is not None:
        if mix_previous != 0.0:
            direction -= mix_previous * tl.load(previous + place, mask=mask, other=0.0)
    result = coef_x * now - coef_x0 * direction
    if noise is not None:
        if coef_noise != 0.0:
            result += coef_noise * tl.load(noise + place, mask=mask, other=0.0)
    tl.store(next_x + place, result, mask=mask)
    tl.store(denoised + place, clean, mask=mask)


def guided_step(
    x: Tensor,
    outputs: Tensor,
    coefficients: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Network output to the next x, each operand read once, all arithmetic in float32.

    Args:
        x: [...] float32: the noisy latents.
        outputs: [G, ...] float: the network's output, without the text and with it; only with it if G is 1.
        coefficients: [8] float32, in the order of `COEFFICIENTS`; where there is no operand yet, its weight must be 0.
        previous: as `x`: x0 of the step before, None for solvers of one step.
        noise: as `x`, None for solvers without.

    Returns:
        (next x, x0), each as `x`; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_dtype("x", x, (torch.float32,))
    if outputs.ndim != x.ndim + 1 or outputs.shape[0] not in (1, 2) or outputs.shape[1:] != x.shape:
        raise ValueError(f"outputs must have shape (1 or 2, *{tuple(x.shape)}), not {tuple(outputs.shape)}")
    expect_shape("coefficients", coefficients, (len(COEFFICIENTS),))
    expect_dtype("coefficients", coefficients, (torch.float32,))
    operands = {"x": x, "outputs": outputs, "coefficients": coefficients}
    for name, tensor in (("previous", previous), ("noise", noise)):
        if tensor is not None:
            expect_shape(name, tensor, x.shape)
            expect_dtype(name, tensor, (torch.float32,))
            operands[name] = tensor
    expect_floats(**operands)
    return dispatch(backend, _guided_step, guided_step_reference, x, outputs, coefficients, previous, noise)


def guided_step_reference(
    x: Tensor, outputs: Tensor, coefficients: Tensor, previous: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    skip, out, scale, *_ = coefficients.unbind()
    estimates = out * outputs.float() + skip * x
    clean = estimates[0] if len(estimates) == 1 else estimates[0] + scale * (estimates[1] - estimates[0])
    return solver_update(x, clean, coefficients, previous, noise), clean


def solver_update(
    x: Tensor, clean: Tensor, coefficients: Tensor, previous: Tensor | None, noise: Tensor | None
) -> Tensor:
    """The next x after a (guided) estimate of the clean latents; operands as for `guided_step`."""
    _, _, _, coef_x, coef_x0, mix, mix_previous, coef_noise = coefficients.unbind()
    direction = mix * clean
    if previous is not None:
        direction = direction - torch.where(mix_previous == 0, 0.0, mix_previous * previous)
    result = coef_x * x - coef_x0 * direction
    return result if noise is None else result + torch.where(coef_noise == 0, 0.0, coef_noise * noise)


def _guided_step(
    x: Tensor, outputs: Tensor, coefficients: Tensor, previous: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, outputs, coefficients = x.contiguous(), outputs.contiguous(), coefficients.contiguous()
    previous, noise = (None if tensor is None else tensor.contiguous() for tensor in (previous, noise))
    next_x, denoised = torch.empty_like(x), torch.empty_like(x)
    start(
        guided_step_kernel,
        (-(-x.numel() // TILE.elements),),
        *(x, outputs, coefficients, previous, noise, next_x, denoised, x.numel()),
        warps=TILE.warps,
        GUIDED=outputs.shape[0] == 2,
        BLOCK=TILE.elements,
    )
    return next_x, denoised


def guided_step_bound(
    x: Tensor, outputs: Tensor, coefficients: Tensor, previous: Tensor | None, noise: Tensor | None
) -> Bound:
    """Each operand read once, next x and x0 written once; 3 operations a guidance row, then 7 an element."""
    extra = sum(tensor.nbytes for tensor in (previous, noise) if tensor is not None)
    return Bound(3 * x.nbytes + outputs.nbytes + extra, (3 * outputs.shape[0] + 7) * x.numel())
