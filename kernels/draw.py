"""Drawing a token from the planner's logits without the host: guidance, temperature, top-k or top-p (REFERENCE 2.6).

Noise is given, so that a draw depends on its key alone. Shapes: `B` batch, `V` vocabulary, `K` tokens, `G` guidance
rows.
"""

import torch
from torch import Tensor

from kernels.tools.launch import Backend, Bound, Uncovered, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import LARGEST_BLOCK, expect_dtype, expect_rank, expect_shape, expect_together, power_of_two

WARPS = 8


@jit
def draw_kernel(
    logits: operand,
    gumbel: operand,
    out: operand,
    batch: operand,
    vocabulary: operand,
    tokens: operand,
    guidance: operand,
    temperature: operand,
    top_k: operand,
    top_p: operand,
    GUIDED: constexpr,
    BY_COUNT: constexpr,
    BY_MASS: constexpr,
    BLOCK: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    allowed = column < tokens
    values = tl.load(logits + row * vocabulary + column, mask=allowed, other=0.0).to(tl.float32)
    if GUIDED:
        plain = tl.load(logits + (batch + row) * vocabulary + column, mask=allowed, other=0.0).to(tl.float32)
        values = plain + guidance * (values - plain)
    # Adding zero makes -0.0 equal to 0.0 in the order of bits below.
    values = tl.where(allowed, values / temperature + 0.0, -float("inf"))
    kept = allowed
    if BY_COUNT or BY_MASS:
        # Floats in the order of integers, so that the threshold is found exactly, by bisection and without a sort.
        bits = values.to(tl.int32, bitcast=True)
        order = tl.where(allowed, bits ^ ((bits >> 31) & 0x7FFFFFFF), -2147483648).to(tl.int64)
        weight = tl.exp(values - tl.max(values, axis=0))
        most = top_p * tl.sum(weight, axis=0)
        low, high = tl.min(order, axis=0), tl.max(order, axis=0)
        for _ in range(33):
            if BY_COUNT:
                # The highest threshold that keeps at least top_k.
                middle = low + ((high - low + 1) >> 1)
                enough = tl.sum((order >= middle).to(tl.int32), axis=0) >= top_k
                low, high = tl.where(enough, middle, low), tl.where(enough, high, middle - 1)
            else:
                # The lowest threshold above which less than top_p lies.
                middle = low + ((high - low) >> 1)
                fits = tl.sum(tl.where(order > middle, weight, 0.0), axis=0) < most
                low, high = tl.where(fits, low, middle + 1), tl.where(fits, middle, high)
        kept = allowed & (order >= low)
    noise = tl.load(gumbel + row * tokens + column, mask=allowed, other=0.0).to(tl.float32)
    drawn = tl.argmax(tl.where(kept, values + noise, -float("inf")), axis=0)
    tl.store(out + row, drawn.to(tl.int64))


def draw_token(
    logits: Tensor,
    gumbel: Tensor,
    guidance: float,
    temperature: float,
    top_k: int,
    top_p: float,
    backend: Backend = "auto",
) -> Tensor:
    """One token a row: the arg max of the kept logits plus Gumbel noise, which is a draw from their softmax.

    Args:
        logits: [G, B, V] float32: with the text, then without it; only with it if G is 1.
        gumbel: [B, K] float32: -log(-log(u)) of uniform u; zeros take the likeliest. Only the first K <= V ids may be
            drawn, so special tokens cannot be.
        guidance: factor of (with - without); not read if G is 1.
        temperature: divides the logits, > 0.
        top_k: keep logits not below the k-th; 0 keeps all.
        top_p: drop tokens once more likely ones hold this mass, in (0, 1]; 1 keeps all. Of equal logits at the border
            the kernel keeps all, torch some.

    Returns:
        [B] int64; new memory.

    Raises:
        ValueError: a shape, dtype, device or setting does not fit.
    """
    expect_rank("logits", logits, 3)
    rows, batch, vocabulary = logits.shape
    expect_shape("logits", logits, (min(rows, 2), batch, vocabulary))
    expect_rank("gumbel", gumbel, 2)
    if gumbel.shape[0] != batch or gumbel.shape[1] > vocabulary:
        raise ValueError(
            f"gumbel must have shape ({batch}, 1..{vocabulary}), the vocabulary, not {tuple(gumbel.shape)}"
        )
    expect_together(logits=logits, gumbel=gumbel)
    for name, tensor in (("logits", logits), ("gumbel", gumbel)):
        expect_dtype(name, tensor, (torch.float32,))
    if temperature <= 0 or not 0 < top_p <= 1 or top_k < 0 or (top_k and top_p < 1):
        raise ValueError(
            "temperature must be > 0, top_p in (0, 1], top_k >= 0, and one of top_k, top_p off, "
            f"not {temperature}, {top_p}, {top_k}"
        )
    return dispatch(backend, _draw_token, draw_token_reference, logits, gumbel, guidance, temperature, top_k, top_p)


def draw_token_reference(
    logits: Tensor, gumbel: Tensor, guidance: float, temperature: float, top_k: int, top_p: float
) -> Tensor:
    mixed = guide_logits(logits, guidance)[:, : gumbel.shape[-1]]
    return (filter_logits(mixed, temperature, top_k, top_p) + gumbel).argmax(dim=-1)


def guide_logits(logits: Tensor, guidance: float) -> Tensor:
    """[G, B, V], with the text and without it, or with it alone -> [B, V]."""
    if len(logits) == 1:
        return logits[0]
    with_text, without = logits.unbind()
    return without + guidance * (with_text - without)


def filter_logits(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits [..., V] of the distribution to draw from: -inf for tokens that top-k or top-p drops."""
    logits = logits / temperature
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        late = ordered.cumsum(dim=-1) - ordered >= top_p
        logits = logits.masked_fill(torch.zeros_like(late).scatter(-1, order, late), float("-inf"))
    return logits


def _draw_token(
    logits: Tensor, gumbel: Tensor, guidance: float, temperature: float, top_k: int, top_p: float
) -> Tensor:
    logits, gumbel = logits.contiguous(), gumbel.contiguous()
    rows, batch, vocabulary = logits.shape
    tokens = gumbel.shape[1]
    if vocabulary > LARGEST_BLOCK:
        raise Uncovered(f"a program holds a vocabulary of at most {LARGEST_BLOCK}, not {vocabulary}")
    out = torch.empty(batch, dtype=torch.int64, device=logits.device)
    start(
        draw_kernel,
        (batch,),
        *(logits, gumbel, out, batch, vocabulary, tokens, float(guidance), float(temperature), top_k, float(top_p)),
        warps=WARPS,
        GUIDED=rows == 2,
        BY_COUNT=top_k > 0,
        BY_MASS=top_p < 1,
        BLOCK=max(power_of_two(vocabulary), 32 * WARPS),
    )
    return out


def draw_token_bound(
    logits: Tensor, gumbel: Tensor, guidance: float, temperature: float, top_k: int, top_p: float
) -> Bound:
    """Logits and noise read once; some five operations a logit, the thresholds' passes not counted."""
    return Bound(logits.nbytes + gumbel.nbytes + 8 * gumbel.shape[0], 5 * logits.numel())
