"""Planner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden import TOLERANCE, Golden, load, relative_error
from torch import Tensor

from engine.published import case_models
from engine.runtime import attention
from engine.runtime.kv_cache import KVCache
from engine.runtime.layers import sinusoid
from engine.semantic.planner import Planner, PlannerConfig
from kernels.tools import launch

SMALL = PlannerConfig(
    hidden=32,
    layers=2,
    heads=2,
    mlp=64,
    codebook_size=20,
    text_dim=12,
    micro_freq=8,
    micro_hidden=16,
    i_tokens=4,
    p_tokens=2,
    gop_frames=3,
    context_gops=1,
    pooled_text=True,
    null_micro=True,
)


def prompt(golden: Golden) -> Tensor:
    """The golden text without its padding."""
    return golden["text/t5_embeddings"][:, golden["text/attention_mask"][0].bool()]


def small(**changes: Any) -> Planner:
    torch.manual_seed(0)
    config = {field: getattr(SMALL, field) for field in SMALL.__slots__} | changes
    return Planner(PlannerConfig(**config)).eval()


@pytest.mark.parametrize("case", ["lm_a", "lm_b"])
@torch.inference_mode()
def test_equals_the_published_prefix(case: str) -> None:
    """Conditional and unconditional prefix equal the published vectors."""
    golden = load(case)
    planner = case_models.planner(golden)
    text = prompt(golden).expand(2, -1, -1)
    config = golden.config
    prefix = planner.prefix(text, config["num_frames"], config["motion_score"], torch.tensor([False, True]))
    assert prefix.pooled is None
    first = planner.embed(torch.full((2, 1), planner.config.iframe_start), None)
    # The published record ends with the token that closes the video, which is never fed.
    expected = golden["prefix/features_cond_uncond"][:, :-1]
    assert relative_error(torch.cat([prefix.embeddings, first], dim=1), expected) <= TOLERANCE
    assert relative_error(prefix.embeddings[:1, 1:3], golden["prefix/micro_cond"]) <= TOLERANCE
    assert relative_error(prefix.embeddings[0, 3:], golden["prefix/text_cond"]) <= TOLERANCE
    assert relative_error(prefix.embeddings[1, 3:], golden["prefix/text_null"]) <= TOLERANCE


@pytest.mark.parametrize("case", ["lm_a", "lm_b"])
@torch.inference_mode()
def test_equals_the_published_network(case: str) -> None:
    """The last block's output and the logits of a whole sequence equal the published ones."""
    golden = load(case)
    planner = case_models.planner(golden)
    inputs = golden["forward/input_features"]
    assert relative_error(planner.transform(inputs), golden["forward/hidden"]) <= TOLERANCE
    assert relative_error(planner(inputs), golden["forward/logits"]) <= TOLERANCE
    tokens = golden["forward/tokens_after_prefix"]
    embedded = planner.embed(tokens.expand(2, -1), None)
    assert relative_error(inputs[:, -len(tokens) :], embedded) <= TOLERANCE


def test_full_size_sinusoid() -> None:
    """The sinusoid of a number at full size equals the published rows, as far as the angle's own rounding allows."""
    golden = load("fullscale_tables")
    values = golden["timestep_embedding/t"]
    error = (sinusoid(values, 256) - golden["timestep_embedding/dim256"]).abs().amax(dim=1)
    # Processors round exp() differently in the last bit of a frequency, which the value multiplies.
    assert (error <= (values * 2.0**-24).clamp(min=TOLERANCE)).all()


@pytest.mark.parametrize("on_device", [False, True])
@torch.inference_mode()
def test_decoding_with_a_cache_equals_the_whole(on_device: bool) -> None:
    """Prefill, a batch and single tokens give the logits of one pass, with number and with tensor positions."""
    planner = small()
    inputs = torch.randn(2, 13, 32)
    whole = planner(inputs)
    cache = KVCache.allocate(2, 2, 2, 16, 16)
    cache.keys.fill_(7.0)
    start, parts = 0, []
    for part in inputs.split([6, 3, 1, 1, 1, 1], dim=1):
        parts.append(planner(part, cache, torch.tensor(start) if on_device else start))
        start += part.shape[1]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("on_device", [False, True])
@torch.inference_mode()
def test_kernels_decode_what_torch_does(on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms, rotary turns, gated MLP and attention over the cache give the same logits fused; rows may differ."""
    planner = small()
    inputs = torch.randn(2, 9, 32)

    def decode() -> Tensor:
        cache = KVCache.allocate(2, 2, 2, 12, 16)
        parts = [planner(inputs[:, :6], cache, 0)]
        for place in (6, 7):
            parts.append(planner(inputs[:, place : place + 1], cache, torch.tensor(place) if on_device else place))
        parts.append(planner(inputs[:, 8:], cache, torch.tensor([8, 3])))
        return torch.cat(parts, dim=1)

    plain = decode()
    lengths = []
    kernel = attention.decode_attention
    monkeypatch.setattr(
        attention, "decode_attention", lambda *rest: (lengths.append(rest[3].length.tolist()), kernel(*rest))[1]
    )
    with launch.preferring("triton"):
        torch.testing.assert_close(decode(), plain, rtol=1e-5, atol=1e-5)
    # At a number the keys are cut to those that are filled.
    assert lengths == [[7], [7], [8], [8]] * on_device + [[9, 4], [9, 4]]


@torch.inference_mode()
def test_filled_cache_is_that_of_the_whole_network() -> None:
    """Though the last layer stops at its keys and values."""
    planner = small()
    vectors = torch.randn(2, 9, 32)
    filled, run = (KVCache.allocate(2, 2, 2, 12, 16) for _ in range(2))
    planner.fill(vectors, filled)
    planner.transform(vectors, run, 0)
    assert torch.equal(filled.keys, run.keys) and torch.equal(filled.values, run.values)
    assert filled.keys[:, :, :, :9].all() and not filled.keys[:, :, :, 9:].any()


@torch.inference_mode()
def test_rows_decode_at_positions_of_their_own() -> None:
    """Two sequences of different length, one token each in one call, give what they give alone."""
    planner = small()
    inputs = torch.randn(2, 9, 32)
    cache = KVCache.allocate(2, 2, 2, 12, 16)
    planner(inputs[:, :8], cache, 0)
    position = torch.tensor([4, 8])
    step = inputs[torch.arange(2), position][:, None]
    both = planner(step, cache, position)
    for row in range(2):
        alone = planner(inputs[row : row + 1, : int(position[row]) + 1])[:, -1:]
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_later_tokens_never_change_earlier_logits() -> None:
    """The logits of a position depend on it and what stands before it only."""
    planner = small()
    inputs = torch.randn(1, 10, 32)
    changed = inputs.clone()
    changed[:, 6:] = torch.randn(1, 4, 32)
    assert torch.equal(planner(inputs)[:, :6], planner(changed)[:, :6])


@torch.inference_mode()
def test_pooled_text_reaches_every_position() -> None:
    """The pooled text is part of prefix and tokens, and hidden where the text is."""
    planner, text = small(), torch.randn(2, 5, 12)
    prefix = planner.prefix(text, 3.0, 0.5, torch.tensor([False, True]))
    assert prefix.pooled is not None
    assert prefix.pooled[0].any()
    assert not prefix.pooled[1].any()
    tokens = torch.tensor([[1, 2], [1, 2]])
    difference = planner.embed(tokens, prefix.pooled) - planner.embed(tokens, None)
    torch.testing.assert_close(difference, prefix.pooled.expand(-1, 2, -1))
    bos = planner.tokens.weight[SMALL.bos]
    torch.testing.assert_close(prefix.embeddings[0, 0], bos + prefix.pooled[0, 0])


@torch.inference_mode()
def test_hidden_text_leaves_no_trace() -> None:
    """Rows whose text is hidden are equal whatever the text."""
    planner = small()
    one, other = (planner.prefix(torch.randn(1, 5, 12), 3.0, 0.5, True).embeddings for _ in range(2))
    assert torch.equal(one, other)


@torch.inference_mode()
def test_missing_numbers_have_a_vector() -> None:
    """None and NaN give the null vector, row by row; without null vectors None raises."""
    planner, text = small(pooled_text=False), torch.randn(2, 5, 12)
    assert planner.frames.null is not None
    prefix = planner.prefix(text, torch.tensor([float("nan"), 3.0]), None, False).embeddings
    assert torch.equal(prefix[0, 1], planner.frames.null)
    assert not torch.equal(prefix[1, 1], planner.frames.null)
    assert torch.equal(prefix[1, 2], planner.motion.null)
    with pytest.raises(ValueError, match="the motion score must be given"):
        small(null_micro=False).prefix(text, 3.0, None, False)


def test_learns_a_sequence_under_bfloat16() -> None:
    """A few steps teach it sequences that depend on the text alone, and every weight takes part."""
    planner = small().train()
    optimizer = torch.optim.AdamW(planner.parameters(), lr=3e-3)
    text = torch.randn(4, 5, 12)
    tokens = torch.randint(SMALL.codebook_size, (4, 6))
    numbers = torch.tensor([1.0, float("nan"), 3.0, 4.0])
    for _ in range(60):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prefix = planner.prefix(text, numbers, numbers, torch.tensor([False, False, False, True]))
            inputs = torch.cat([prefix.embeddings, planner.embed(tokens[:, :-1], prefix.pooled)], dim=1)
            logits = planner(inputs)[:, prefix.embeddings.shape[1] - 1 :]
        assert logits.dtype == torch.float32
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in planner.parameters())
    assert loss.item() < 0.1


def test_layout() -> None:
    """Special tokens and lengths of a plan equal the published sequence."""
    config = PlannerConfig()
    assert config.vocab == 2055
    assert (config.eos, config.bos, config.pad) == (2048, 2049, 2054)
    assert config.plan_len(13) == 1244
    assert config.max_len(20) == 3 + 20 + 1244
    golden = load("lm_a")
    assert PlannerConfig(i_tokens=8, p_tokens=3, gop_frames=4).plan_len(8) == golden.facts["code_len_with_specials"]
    small_layout = SMALL.layout(4)
    i_frame, p_frame = (22, None, None, None, None, 23), (24, None, None, 25)
    assert small_layout == i_frame + p_frame + p_frame + i_frame


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "hidden 32 over 3 heads"),
        ({"micro_freq": 7}, "micro_freq 7"),
        ({"gop_frames": 0}, "gop_frames 0"),
        ({"context_gops": -1}, "context_gops -1"),
    ],
)
def test_wrong_configuration_is_refused(changes: dict[str, int], message: str) -> None:
    """A configuration that cannot work raises and names the numbers."""
    with pytest.raises(ValueError, match=message):
        small(**changes)
