"""Semantic tokenizer."""

from __future__ import annotations

import pytest
import torch
from golden import TOLERANCE, load, relative_error

from engine.published import case_models
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig, gop_angles

SMALL = TokenizerConfig(
    feature_dim=6,
    grid=(4, 6),
    patch=2,
    width=32,
    layers=2,
    heads=2,
    frames=4,
    i_tokens=5,
    p_tokens=2,
    normalize=True,
    quantizer=QuantizerConfig(dim=24, codebook_size=16, codebook_dim=4, metric="cosine"),
)


def small() -> SemanticTokenizer:
    torch.manual_seed(0)
    return SemanticTokenizer(SMALL).eval()


@pytest.mark.parametrize("case", ["tokenizer_a", "tokenizer_b"])
@torch.inference_mode()
def test_equals_the_published_gop(case: str) -> None:
    """Encoder, projection, indices, token vectors and features of a whole GOP equal the published ones."""
    golden = load(case)
    tokenizer = case_models.tokenizer(golden)
    latents = tokenizer.encoder(golden["group/features"])
    assert relative_error(latents, golden["group/encoder_out"].squeeze(2).mT) <= TOLERANCE
    assert relative_error(tokenizer.quantizer.project(latents), golden["group/project_in"]) <= TOLERANCE
    tokens = tokenizer.encode(golden["group/features"])
    assert torch.equal(tokens, golden["group/indices"])
    assert relative_error(tokenizer.quantizer.decode(tokens), golden["group/quantized"]) <= TOLERANCE
    features = tokenizer.decode(tokens)
    assert relative_error(features[:1], golden["group/decoded_b0"]) <= TOLERANCE
    assert relative_error(features[1:], golden["group/decoded_default_T_b1"]) <= TOLERANCE


@pytest.mark.parametrize("case", ["tokenizer_a", "tokenizer_b"])
@torch.inference_mode()
def test_equals_the_published_short_gops(case: str) -> None:
    """GOPs of one frame and of two equal the published ones; features always keep their time axis."""
    golden = load(case)
    tokenizer = case_models.tokenizer(golden)
    for frames in (1, 2):
        tokens = golden[f"short{frames}/indices"]
        expected = golden[f"short{frames}/decoded"].view(1, frames, *golden["group/features"].shape[2:])
        assert torch.equal(tokenizer.encode(golden["group/features"][:1, :frames]), tokens)
        assert relative_error(tokenizer.decode(tokens, frames), expected) <= TOLERANCE


@pytest.mark.parametrize("case", ["tokenizer_a", "tokenizer_b"])
@torch.inference_mode()
def test_equals_the_published_segments(case: str) -> None:
    """A longer clip cut into segments, the last one short, gives the published tokens and features."""
    golden = load(case)
    tokenizer = case_models.tokenizer(golden)
    for number, offset in enumerate(golden.facts["multi"]["offsets"]):
        segment = golden["multi/features"][:, offset : offset + golden.facts["multi"]["segment_length"]]
        tokens = tokenizer.encode(segment)
        assert torch.equal(tokens, golden[f"multi/indices_{number}"])
        expected = golden[f"multi/decoded_{number}"].view_as(segment)
        assert relative_error(tokenizer.decode(tokens), expected) <= TOLERANCE


@pytest.mark.parametrize("case", ["tokenizer_a", "tokenizer_b"])
def test_rotary_tables(case: str) -> None:
    """Patches then queries turn by the published angles."""
    golden = load(case)
    config = case_models.tokenizer_config(golden.config)
    angles = gop_angles(config, config.frames, "cpu")
    visual = config.frames * config.patches
    assert relative_error(angles.cos(), golden["rope/enc_cos"]) <= TOLERANCE
    assert relative_error(angles.sin(), golden["rope/enc_sin"]) <= TOLERANCE
    assert relative_error(angles[:visual].cos(), golden["rope/dec_visual_cos"]) <= TOLERANCE
    assert relative_error(angles[visual:].cos(), golden["rope/dec_query_cos"]) <= TOLERANCE


def test_full_size_rotary_rows() -> None:
    """Rows of the full-size table equal the published ones."""
    golden = load("fullscale_tables")
    config = TokenizerConfig()
    angles = gop_angles(config, config.frames, "cpu")
    for (t, y, x), cos, sin in zip(
        golden["rope3d/pos"].tolist(), golden["rope3d/cos"], golden["rope3d/sin"], strict=True
    ):
        latent = t == y == x and t < config.gop_tokens
        row = config.frames * config.patches + t if latent else (t * 30 + y) * 45 + x
        assert relative_error(angles[row].cos(), cos) <= TOLERANCE
        assert relative_error(angles[row].sin(), sin) <= TOLERANCE


def test_decoding_is_causal_by_frame() -> None:
    """The first frames' tokens alone give the first frames of the whole GOP's features."""
    tokenizer = small()
    tokens = torch.randint(16, (2, SMALL.gop_tokens))
    whole = tokenizer.decode(tokens)
    for frames in range(1, SMALL.frames):
        part = tokenizer.decode(tokens[:, : SMALL.offsets[frames]], frames)
        torch.testing.assert_close(part, whole[:, :frames], rtol=1e-5, atol=1e-6)


def test_encoding_is_causal_by_frame() -> None:
    """Later frames never change the tokens of earlier ones."""
    tokenizer = small()
    features = torch.randn(1, 4, 6, 4, 6)
    whole = tokenizer.encode(features)
    assert torch.equal(tokenizer.encode(features[:, :2]), whole[:, : SMALL.offsets[2]])


def test_patch_order() -> None:
    """Each cell of a patch keeps its place: the decoder's head fills cells in reading order inside its patch."""
    tokenizer = small()
    decoder = tokenizer.decoder
    with torch.no_grad():
        decoder.head_out.weight.zero_()
        decoder.head_out.bias.copy_(torch.arange(4 * 6))
        features = decoder(torch.randn(1, SMALL.tokens(2), 24))
    cells = torch.arange(4).view(2, 2)[:, :, None] * 6 + torch.arange(6)
    assert torch.equal(features[0, 1, :, 2:4, 4:6], cells.permute(2, 0, 1).float())


def test_trains_under_bfloat16() -> None:
    """A few steps of training lower the reconstruction's error."""
    torch.manual_seed(0)
    tokenizer = SemanticTokenizer(SMALL)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    features = torch.randn(8, 1, 6, 1, 1) + 0.1 * torch.randn(8, 3, 6, 4, 6)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = tokenizer(features)
        loss = (output.reconstruction.float() - features).pow(2).mean()
        optimizer.zero_grad()
        (loss + 0.25 * output.commitment).backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())
    assert losses[-1] < 0.6 * losses[0]


def test_trains_after_inference() -> None:
    """What is kept between calls serves training also when inference mode made it."""
    tokenizer = small()
    features = torch.randn(1, 3, 6, 4, 6)
    with torch.inference_mode():
        tokenizer.decode(tokenizer.encode(features))
    tokenizer(features).reconstruction.sum().backward()
    assert tokenizer.decoder.mask_token.grad is not None


def test_normalization() -> None:
    """With normalisation on, features scaled together with the buffers give the same tokens, scaled back features."""
    tokenizer = small()
    features = torch.randn(1, 2, 6, 4, 6)
    tokens = tokenizer.encode(features)
    plain = tokenizer.decode(tokens)
    tokenizer.mean.fill_(3.0)
    tokenizer.std.fill_(2.0)
    assert torch.equal(tokenizer.encode(features * 2.0 + 3.0), tokens)
    torch.testing.assert_close(tokenizer.decode(tokens), plain * 2.0 + 3.0, rtol=1e-5, atol=1e-5)


def test_geometry() -> None:
    """Token counts, offsets and their inverse agree with the published GOP."""
    config = TokenizerConfig()
    assert config.gop_tokens == 1218
    assert config.offsets[:3] == (0, 330, 404)
    assert all(config.frames_of(config.tokens(frames)) == frames for frames in range(1, 14))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "width 100"),
        ({"grid": (30, 45), "patch": 2}, r"grid \(30, 45\) is not divisible by patch 2"),
        ({"p_tokens": 0}, "p_tokens 0"),
    ],
)
def test_wrong_configuration_is_refused(changes: dict[str, int], message: str) -> None:
    """A configuration that cannot work raises and names the numbers."""
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**changes)  # type: ignore[arg-type]


def test_wrong_input_is_refused() -> None:
    """Codes that make no whole frames, too many frames and other feature shapes raise."""
    tokenizer = small()
    with pytest.raises(ValueError, match="6 tokens do not make whole frames"):
        tokenizer.decode(torch.zeros(1, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="2 frames take 7 tokens, not 5"):
        tokenizer.decode(torch.zeros(1, 5, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="1 to 4 frames, not 5"):
        tokenizer.encode(torch.zeros(1, 5, 6, 4, 6))
    with pytest.raises(ValueError, match="expected"):
        tokenizer.encode(torch.zeros(1, 2, 6, 4, 5))
