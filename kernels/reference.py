"""Every operation of this package in plain PyTorch: what the kernels must equal, and what runs without them.

All arithmetic is in float32; a result has the dtype of the first operand unless stated. Needs no Triton.
Shapes: `B` batch, `N` tokens, `D` width, `H` heads, `P` rotary pairs, `K` codes, `V` vocabulary, `L` cache length,
`C` channels, `T` frames, `G` guidance rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NORM = 1e-12  # cosine distance divides by no less


def _by_kind(modulation: Tensor, tokens: int, text_rows: int) -> Tensor:
    """[B, 2, D] (image row, text row) -> [B, N, D]: text rows first, as the token sequence has them."""
    kind = torch.arange(tokens, device=modulation.device) < text_rows
    return modulation.float()[:, kind.long()]


def layernorm_modulate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    scale: Tensor,
    text_rows: int,
    eps: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """LayerNorm, then y (1 + scale) + shift with one pair for image rows, one for text rows (FACTS 3.2)."""
    normed = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    tokens = x.shape[1]
    result = normed * (1 + _by_kind(scale, tokens, text_rows)) + _by_kind(shift, tokens, text_rows)
    return result.to(dtype or x.dtype)


def gated_residual(x: Tensor, update: Tensor, gate: Tensor, text_rows: int, control: Tensor | None = None) -> Tensor:
    """x + gate update, plus the control branch's residual if there is one (FACTS 3.2, 3.3)."""
    total = x.float() + _by_kind(gate, x.shape[1], text_rows) * update.float()
    return (total if control is None else total + control.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """RMSNorm, scaled in float32 and cast last (FACTS 2.5)."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(dtype or x.dtype)


def add_rms_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The residual stream x + update, rounded to its dtype, and its RMSNorm: (normed, total)."""
    total = (x.float() + update.float()).to(x.dtype)
    return rms_norm(total, weight, eps, dtype), total


def head_norm(
    q: Tensor, k: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm over each head of queries and keys (FACTS 3.2)."""
    width = q.shape[-1:]
    normed_q = F.layer_norm(q.float(), width, q_weight.float(), q_bias.float(), eps).to(q.dtype)
    normed_k = F.layer_norm(k.float(), width, k_weight.float(), k_bias.float(), eps).to(k.dtype)
    return normed_q, normed_k


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Rotary embedding of interleaved pairs by tables of angles (FACTS 1.5, 2.5)."""
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def gated_gelu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) up (FACTS 2.5)."""
    return (F.gelu(gate.float(), approximate="tanh") * up.float()).to(gate.dtype)


def nearest_code(x: Tensor, codebook: Tensor, cosine: bool) -> Tensor:
    """Index of the nearest row of the codebook, the lowest of equals (FACTS 1.7). Returns [N] int64."""
    rows, codes = x.float(), codebook.float()
    if cosine:
        return (F.normalize(rows, dim=-1, eps=SMALLEST_NORM) @ F.normalize(codes, dim=-1, eps=SMALLEST_NORM).T).argmax(
            1
        )
    squares = rows.pow(2).sum(1)[:, None] + codes.pow(2).sum(1)[None, :]
    return (squares - 2 * rows @ codes.T).clamp_min(0).sqrt().argmin(1)


def lookup_project(weight: Tensor, bias: Tensor, codebook: Tensor, indices: Tensor, cosine: bool) -> Tensor:
    """Rows of the codebook, unit length under the cosine metric, through a linear layer (FACTS 1.7)."""
    codes = codebook.float()
    if cosine:
        codes = F.normalize(codes, dim=-1, eps=SMALLEST_NORM)
    return F.linear(codes[indices], weight.float(), bias.float()).to(weight.dtype)


def guided_step(
    x: Tensor, outputs: Tensor, coefficients: Tensor, step: Tensor, previous: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Prediction to x0, guidance, solver update: (next x, x0), float32 (FACTS 3.6 to 3.8)."""
    skip, out, scale, keep, pull, mix, mix_previous, spread = coefficients[step].view(8).unbind()
    clean = out * outputs.float() + skip * x
    denoised = clean[0] if clean.shape[0] == 1 else clean[0] + scale * (clean[1] - clean[0])
    direction = mix * denoised
    # A weight of zero means that the operand does not exist yet; its memory may hold anything.
    if previous is not None:
        direction = direction - torch.where(mix_previous == 0, 0.0, mix_previous * previous)
    result = keep * x - pull * direction
    if noise is not None:
        result = result + torch.where(spread == 0, 0.0, spread * noise)
    return result, denoised


def draw_code(logits: Tensor, gumbel: Tensor, guidance: float, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Guidance, temperature, top-k or top-p, and a draw by the Gumbel noise given (FACTS 2.6). Returns [B] int64."""
    codes = gumbel.shape[1]
    wide = logits[:, :, :codes].float()
    mixed = wide[0] if wide.shape[0] == 1 else wide[1] + guidance * (wide[0] - wide[1])
    scaled = mixed / temperature
    if top_k:
        lowest = scaled.topk(min(top_k, codes), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < lowest, -torch.inf)
    if top_p < 1:
        ordered, _ = scaled.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        lowest = ordered.masked_fill(mass.cumsum(-1) - mass >= top_p, torch.inf).amin(-1, keepdim=True)
        scaled = scaled.masked_fill(scaled < lowest, -torch.inf)
    return (scaled + gumbel.float()).argmax(-1)


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
    """Softmax attention of one query a head over the first `length` rows of a static cache (FACTS 2.5)."""
    scores = torch.einsum("bhd,bhld->bhl", q.float(), keys.float()) * q.shape[-1] ** -0.5
    unused = (torch.arange(keys.shape[2], device=q.device) >= length[:, None])[:, None]
    weights = scores.masked_fill(unused, -torch.inf).softmax(-1)
    # Rows past the end may hold anything, and 0 x NaN is NaN.
    filled = values.float().masked_fill(unused[..., None], 0.0)
    return torch.einsum("bhl,bhld->bhd", weights, filled).to(q.dtype)


def latent_frames(frames: int, latents: int, device: torch.device) -> Tensor:
    """The latent frame that each of `frames` frames is conditioned on, [T] int64 (FACTS 4)."""
    frame = torch.arange(frames, device=device)
    if frames > 1 and frames % 2:
        return torch.where(frame == 0, 0, 1 + (frame - 1) * (latents - 1) // (frames - 1))
    return frame * latents // frames


def spatial_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> Tensor:
    """GroupNorm, times scale plus shift read at the nearest latent, SiLU (FACTS 4)."""
    frames, height, width = x.shape[2:]
    t = latent_frames(frames, scale.shape[2], x.device)[:, None, None]
    h = (torch.arange(height, device=x.device) * scale.shape[3] // height)[:, None]
    w = torch.arange(width, device=x.device) * scale.shape[4] // width
    normed = F.group_norm(x.float(), groups, weight.float(), bias.float(), eps)
    return F.silu(normed * scale.float()[:, :, t, h, w] + shift.float()[:, :, t, h, w]).to(x.dtype)


def rgb_to_i420(rgb: Tensor) -> Tensor:
    """[3, T, H, W] in [-1, 1] -> planes Y, U, V of each frame, BT.601 limited range, [T, 3H/2, W] uint8."""
    red, green, blue = ((rgb.float() + 1) / 2).clamp(0, 1).unbind(0)
    luma = 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    red, green, blue = F.avg_pool2d(torch.stack([red, green, blue]), 2).unbind(0)
    cb = 128 - 37.797 * red - 74.203 * green + 112.0 * blue
    cr = 128 + 112.0 * red - 93.786 * green - 18.214 * blue
    planes = torch.cat([luma.flatten(1), cb.flatten(1), cr.flatten(1)], dim=1)
    frames, height, width = luma.shape
    return (planes + 0.5).floor().to(torch.uint8).view(frames, height * 3 // 2, width)
