"""Vector quantizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.semantic.quantizer import Metric, QuantizerConfig, VectorQuantizer
from kernels.tools import launch


def quantizer(metric: Metric, **changes: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(
        QuantizerConfig(**({"dim": 12, "codebook_size": 32, "codebook_dim": 4} | changes), metric=metric)
    )


def clusters(rows: int, centres: int = 24) -> Tensor:
    """[rows, 8, 12]: vectors close to one of some fixed centres."""
    generator = torch.Generator().manual_seed(1)
    places = torch.randn(centres, 12, generator=generator) * 3.0
    chosen = torch.randint(centres, (rows, 8))
    return places[chosen] + 0.05 * torch.randn(rows, 8, 12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_equals_brute_force(metric: Metric) -> None:
    """Every vector gets the code that a plain search over all codes finds."""
    module = quantizer(metric).eval()
    x = torch.randn(3, 50, 12)
    with torch.inference_mode():
        indices = module.encode(x)
        vectors, codes = F.linear(x, module.project_in.weight, module.project_in.bias), module.codes[0]
        if metric == "euclidean":
            expected = torch.cdist(vectors, codes, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
        else:
            expected = F.cosine_similarity(vectors[:, :, None], codes[None, None], dim=-1).argmax(-1)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, expected)


def test_ties_take_the_first_code() -> None:
    """Of two equal codes the lower index is chosen."""
    module = quantizer("euclidean").eval()
    module.codes[0, 1::2] = module.codes[0, ::2]
    assert not (module.encode(torch.randn(2, 40, 12)) % 2).any()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_decode_equals_forward(metric: Metric) -> None:
    """What the decoder sees in training is what it sees when codes are decoded."""
    module = quantizer(metric).eval()
    x = torch.randn(2, 7, 12)
    quantized = module(x)
    assert torch.equal(quantized.indices, module.encode(x))
    torch.testing.assert_close(module.decode(quantized.indices), quantized.output, rtol=1e-5, atol=1e-6)


def test_cosine_codes_have_length_one() -> None:
    """With the cosine metric codes stay on the unit sphere while they train."""
    module = quantizer("cosine").train()
    for _ in range(5):
        module(clusters(32))
    torch.testing.assert_close(module.codes.norm(dim=-1), torch.ones(1, 32))


def test_gradient_passes_straight_through() -> None:
    """The input's gradient is the one it would have if the code were the projected vector itself."""
    module = quantizer("euclidean").eval()
    x = torch.randn(2, 5, 12, requires_grad=True)
    module(x).output.sum().backward()
    expected = torch.ones(12) @ module.project_out.weight @ module.project_in.weight
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected.expand_as(x))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_evaluation_changes_nothing(metric: Metric) -> None:
    """In evaluation mode a pass leaves every buffer as it was."""
    module = quantizer(metric).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module(torch.randn(4, 8, 12))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_learns_the_clusters_of_its_input(metric: Metric) -> None:
    """Training finds the clusters: perplexity comes near their number and the commitment falls far."""
    module = quantizer(metric)
    untrained = module.eval()(clusters(64))
    module.train()
    for _ in range(20):
        module(clusters(64))
    trained = module.eval()(clusters(64))
    assert trained.perplexity > max(18.0, 1.5 * untrained.perplexity)
    assert trained.commitment < 0.05 * untrained.commitment


def test_dead_codes_revive() -> None:
    """Codes that nothing is near are moved onto the input within a step."""
    module = quantizer("euclidean", dead_threshold=1.0).train()
    module(clusters(64))
    module.codes[0, 16:] = 1e3
    module.code_sum[0, 16:] = 1e3
    module.cluster_size[0, 16:] = 0.0
    collapsed = module.eval()(clusters(64)).perplexity
    module.train()
    for _ in range(10):
        module(clusters(64))
    assert module.codes.abs().max() < 50.0
    assert module.eval()(clusters(64)).perplexity > 1.3 * collapsed


def test_batches_smaller_than_the_codebook_train() -> None:
    """A first batch with fewer vectors than codes starts the codebook all the same."""
    module = quantizer("cosine").train()
    for _ in range(3):
        output = module(torch.randn(1, 3, 12))
    assert torch.isfinite(module.codes).all()
    assert torch.isfinite(output.output).all()


def test_autocast_changes_no_index() -> None:
    """Codes are compared in float32 also under bfloat16 autocast."""
    module = quantizer("euclidean").eval()
    x = torch.randn(4, 64, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices, forward = module.encode(x), module(x).indices
    assert torch.equal(indices, module.encode(x))
    assert torch.equal(forward, indices)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@torch.inference_mode()
def test_kernels_equal_torch(metric: Metric) -> None:
    """The nearest codes, and what codes stand for, are the same fused."""
    module = quantizer(metric).eval()
    x = torch.randn(3, 21, 12)
    indices = module.encode(x)
    vectors = module.decode(indices)
    with launch.preferring("triton"):
        assert torch.equal(module.encode(x), indices)
        torch.testing.assert_close(module.decode(indices), vectors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size 0"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"decay": 1.0}, "decay 1.0"),
        ({"dead_threshold": -1.0}, "dead_threshold -1.0"),
    ],
)
def test_wrong_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    """A configuration that cannot work raises and names the value."""
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**changes)
