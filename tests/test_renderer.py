"""The renderer against the goldens, and its half-causal path against one masked pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.perceptual.dit import CONTEXT_TIME, DiTConfig, Trunk
from engine.perceptual.head import HeadInputs
from engine.perceptual.renderer import DiTRenderer, RendererConfig, context_timestep
from engine.perceptual.timesteps import Timestep
from engine.perceptual.upsampler import ConditionConfig
from engine.published.case_models import renderer
from engine.runtime.layers import sinusoid
from engine.runtime.pytree import leaves
from tests import golden, tiny

CONTEXT, NEW = 2, 3  # latent frames
DETAILS = replace(tiny.DETAILS, grid=(4, 6))


def _small(**fields: object) -> DiTRenderer:
    """A half-causal renderer of 5 frames with every parameter random, so that no gate hides a mistake."""
    torch.manual_seed(7)
    sizes: dict[str, object] = {
        "hidden": 32, "heads": 4, "layers": 3, "frames": CONTEXT + NEW, "height": 8, "width": 12, "patch": 4,
        "channels": 4, "time_dim": 16, "time_scale": 1000.0, "text_length": 3, "text_dim": 6,
        "half_causal": True, "head": "conv", "head_width": 16, "head_blocks": 2, "head_details": DETAILS.total,
    }  # fmt: skip
    dit = DiTConfig(**(sizes | fields))  # type: ignore[arg-type]
    condition = ConditionConfig(
        feature_dim=5, width=16, multipliers=(1, 1), blocks=0, out_channels=8, latent_channels=4, groups=4,
        details=DETAILS,
    )  # fmt: skip
    model = DiTRenderer(RendererConfig(dit=dit, condition=condition, control_layers=2, prediction="x0"))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def _inputs(context: int = CONTEXT) -> dict[str, Tensor]:
    torch.manual_seed(8)
    inputs = {
        "context": torch.randn(2, context, 4, 8, 12),
        "x": torch.randn(2, NEW, 4, 8, 12),
        "text": torch.randn(2, 3, 6),
        "condition": torch.randn(2, context + NEW, 4 + DETAILS.total, 8, 12),
        "time": torch.tensor([0.3, 0.8]),
    }
    inputs["condition"][:, :, -1].sigmoid_()  # the sketch's opacity
    return inputs


def _denoise(model: DiTRenderer, inputs: dict[str, Tensor]) -> Tensor:
    cache = model.open_window(inputs["context"], model.read_text(inputs["text"]), inputs["condition"])
    return model.denoise(inputs["x"], inputs["time"], cache)


class _MaskedPass:
    """A plain second implementation: all tokens at once, modulated a token at a time, attention under a mask."""

    def __init__(self, trunk: Trunk, time: Tensor, context: int, frames: int) -> None:
        config = trunk.config
        count = config.text_length + frames * config.frame_tokens
        given = torch.arange(count) < config.text_length + context * config.frame_tokens
        times = torch.where(given, CONTEXT_TIME, time[:, None])
        self.text = torch.arange(count) < config.text_length
        self.mask = ~given[:, None] | given[None, :]
        self.embedded = F.silu(trunk.time(sinusoid(times * config.time_scale, config.hidden)))

    def layer(self, block: nn.Module, x: Tensor) -> Tensor:
        image, words = block.modulation(self.embedded).chunk(2, -1)
        parts = torch.where(self.text[:, None], words, image).chunk(6, -1)
        q, k, v = block.qkv(block.norm1(x) * (1 + parts[1]) + parts[0]).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = block.query_norm(q) @ block.key_norm(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        attended = scores.masked_fill(~self.mask, -math.inf).softmax(-1) @ v
        x = x + parts[2] * block.out(attended.transpose(1, 2).flatten(2))
        hidden = F.gelu(block.mlp_in(block.norm2(x) * (1 + parts[4]) + parts[3]), approximate="tanh")
        return x + parts[5] * block.mlp_out(hidden)


def _masked_denoise(model: DiTRenderer, inputs: dict[str, Tensor]) -> Tensor:
    """What `open_window` and `denoise` should give, in one masked pass."""
    context = inputs["context"].shape[1]
    x, condition = torch.cat([inputs["context"], inputs["x"]], 1), inputs["condition"]
    # The control branch sees no noisy frame, and all that it sees stands at the context's time.
    control = _MaskedPass(model.control, torch.full_like(inputs["time"], CONTEXT_TIME), context, x.shape[1])
    given = torch.cat([inputs["context"], torch.zeros_like(inputs["x"])], 1)
    hidden, residuals = model.control.embed(inputs["text"], given + condition[:, :, :4]), []
    for block, zero in zip(model.control.blocks, model.control.zeros, strict=True):
        hidden = zero(control.layer(block, hidden))
        residuals.append(hidden)
    base = _MaskedPass(model.base, inputs["time"], context, x.shape[1])
    hidden = model.base.embed(inputs["text"], x)
    for index, block in enumerate(model.base.blocks):
        hidden = base.layer(block, hidden)
        hidden = hidden + residuals[index] if index < len(residuals) else hidden
    layout = model.base.new_layout(Timestep(inputs["time"]))
    last = (condition[:, context - 1], x[:, context - 1]) if context else (None, None)
    cache = model.base.head.precompute(condition[:, context:], *last)
    return model.base.output(hidden, layout, HeadInputs(inputs["x"], cache, last[1]))


@pytest.mark.parametrize("name", ["dit_a", "dit_b"])
@pytest.mark.parametrize(
    ("frames", "output"),
    [(None, "out_with_control"), (2, "out_with_control_first2frames"), (1, "out_with_control_1frame")],
)
def test_prediction_equals_reference(name: str, frames: int | None, output: str) -> None:
    """Base network with control equals the reference for whole and for short windows."""
    case = golden.load(name)
    model = renderer(case)
    with torch.inference_mode():
        condition = model.condition(case["semantic_feature_before_upsample"])[:, :frames]
        actual = model.predict(case["x"][:, :frames], case["timesteps"], case["context"], condition)
    assert golden.relative_error(actual, case[output]) < golden.TOLERANCE


@pytest.mark.parametrize("head", ["conv", "linear"])
@pytest.mark.parametrize("context", [CONTEXT, 0])
def test_half_causal_equals_masked_attention(head: str, context: int) -> None:
    """Reading the context, then denoising, equals one pass over [text, context, new] under the mask."""
    model, inputs = _small(head=head), _inputs(context)
    with torch.inference_mode():
        actual, expected = _denoise(model, inputs), _masked_denoise(model, inputs)
    assert actual.shape == (2, NEW, 4, 8, 12)
    assert golden.relative_error(actual, expected) < golden.TOLERANCE


def test_cache_serves_every_step() -> None:
    """One cache used for several steps gives exactly what a fresh one gives each time."""
    model, inputs = _small(), _inputs()
    with torch.inference_mode():
        cache = model.open_window(inputs["context"], model.read_text(inputs["text"]), inputs["condition"])
        for time in (0.0, 0.25, 0.9):
            inputs["time"] = torch.full((2,), time)
            inputs["x"] = torch.randn_like(inputs["x"])
            step = model.denoise(inputs["x"], inputs["time"], cache)
            torch.testing.assert_close(step, _denoise(model, inputs), rtol=0, atol=0)


@pytest.mark.parametrize("half_causal", [True, False])
def test_what_is_kept_equals_what_is_made_again(half_causal: bool) -> None:
    """Kept modulations and a text that was read once give, over two windows, exactly what fresh ones give."""
    model = _small(half_causal=half_causal, head="conv" if half_causal else "linear")
    inputs = _inputs()
    with torch.inference_mode():
        text, timestep = model.read_text(inputs["text"]), Timestep(inputs["time"])
        context_time = context_timestep(inputs["x"])
        made = []
        for _ in range(2):
            inputs |= {name: torch.randn_like(inputs[name]) for name in ("x", "context", "condition")}
            cache = model.open_window(inputs["context"], text, inputs["condition"], context_time)
            step = model.denoise(inputs["x"], timestep, cache)
            torch.testing.assert_close(step, _denoise(model, inputs), rtol=0, atol=0)
            made.append(len(leaves((timestep, context_time))))
    assert made[0] == made[1] > 2 * len(model.base.blocks)


@pytest.mark.parametrize("half_causal", [True, False])
def test_rows_share_latents(half_causal: bool) -> None:
    """One row of latents stands for a pair with and without text, and the row with text alone gives its half."""
    model = _small(half_causal=half_causal)
    inputs = {name: value if name == "text" else value[:1] for name, value in _inputs().items()}
    with torch.inference_mode():
        paired = inputs | {name: torch.cat([inputs[name]] * 2) for name in ("x", "context", "condition", "time")}
        expected = _denoise(model, paired)
        cache = model.open_window(paired["context"], model.read_text(inputs["text"]), inputs["condition"])
        assert golden.relative_error(model.denoise(inputs["x"], paired["time"], cache), expected) < golden.TOLERANCE
        alone = model.denoise(inputs["x"], inputs["time"], cache.conditional_rows())
        assert golden.relative_error(alone, expected[1:]) < golden.TOLERANCE
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_context_text_and_condition_matter() -> None:
    """The prediction depends on each of its inputs."""
    model, inputs = _small(), _inputs()
    with torch.inference_mode():
        before = _denoise(model, inputs)
        for name, value in inputs.items():
            after = _denoise(model, inputs | {name: value.flip(0)})
            assert (after - before).abs().max() > 1e-3, name


def test_gradients_agree_with_masked_attention() -> None:
    """Gradients of a loss through cache and denoising equal those through the masked pass."""
    model, inputs = _small(), _inputs()
    _denoise(model, inputs).square().mean().backward()
    actual = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    _masked_denoise(model, inputs).square().mean().backward()
    expected = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert {"base.text.weight", "control.zeros.0.weight", "base.head.conv_in.weight"} <= actual.keys()
    for name, gradient in actual.items():
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-9 + 1e-5 * largest, msg=name)


def test_trains_under_autocast() -> None:
    """Under bf16 autocast the prediction stays near float32's and every used parameter gets a finite gradient."""
    model, inputs = _small(), _inputs()
    exact = _denoise(model, inputs).detach()
    with torch.autocast("cpu", torch.bfloat16):
        output = _denoise(model, inputs)
    assert golden.relative_error(output.float().detach(), exact) < 0.05
    output.float().square().mean().backward()
    unused = {"control.final_norm.weight", "control.final_norm.bias"}
    for name, parameter in model.named_parameters():
        if name not in unused and not name.startswith("condition."):
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_fits_one_batch() -> None:
    """A few steps on one batch, from the initial weights on, bring the loss far down."""
    torch.manual_seed(9)
    inputs, sizes = _inputs(), _small().config
    model = DiTRenderer(sizes)
    target = inputs["x"].roll(1, dims=-1) * 0.5 + inputs["condition"][:, CONTEXT:, :4]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(_denoise(model, inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_full_attention_recomputes_the_context() -> None:
    """Without half-causal attention `denoise` is `predict` over context and new frames together."""
    model, inputs = _small(half_causal=False, head="linear"), _inputs()
    whole = torch.cat([inputs["context"], inputs["x"]], 1)
    with torch.inference_mode():
        expected = model.predict(whole, inputs["time"], inputs["text"], inputs["condition"])[:, CONTEXT:]
        torch.testing.assert_close(_denoise(model, inputs), expected)
        assert (expected - _denoise(_small(head="linear"), inputs)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control_layers": 31}, "control_layers 31 .* layers 30"),
        ({"condition": ConditionConfig(latent_channels=8)}, "latent_channels 8 .* channels 16"),
        (
            {"condition": ConditionConfig(details=replace(DETAILS, sketch=replace(DETAILS.sketch, channels=16)))},
            "20 channels of details, head_details is 0",
        ),
        ({"prediction": "noise"}, "'noise' is neither"),
        ({"dit": DiTConfig(head="conv")}, "must be 'x0'"),
    ],
)
def test_config_errors(fields: dict[str, object], message: str) -> None:
    """A configuration that cannot work says why at construction."""
    with pytest.raises(ValueError, match=message):
        RendererConfig(**fields)  # type: ignore[arg-type]


def test_a_sketch_is_of_latents() -> None:
    """One of another number of channels is refused with both numbers."""
    with pytest.raises(ValueError, match="4 channels, but latents have 16"):
        ConditionConfig(details=DETAILS)


def test_context_and_condition_must_agree() -> None:
    """A condition of fewer frames than the context is refused with both shapes."""
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 8, 12\) and condition \(1, 1, 7, 8, 12\) do not fit"):
        model = _small()
        model.open_window(
            torch.zeros(1, 2, 4, 8, 12), model.read_text(torch.zeros(1, 3, 6)), torch.zeros(1, 1, 7, 8, 12)
        )
