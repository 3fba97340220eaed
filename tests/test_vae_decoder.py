"""The VAE's decoder against the goldens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.perceptual.cogvideox import vae_decoder
from engine.perceptual.cogvideox.causal import CausalState
from engine.published import case_models
from kernels.tools import launch
from tests import golden


@pytest.mark.parametrize("name", ["vae_a", "vae_b"])
def test_slices_equal_reference(name: str) -> None:
    """Slices of 3, 2, 2, ... latents, with memory between them, give the reference's frames."""
    case = golden.load(name)
    decoder, state = case_models.decoder(case), CausalState()
    with torch.inference_mode():
        frames = [decoder(case["latent"][:, :, start:end], state) for start, end in case.facts["slices"]]
    assert golden.relative_error(torch.cat(frames, dim=2), case["decoded_sliced"]) < golden.TOLERANCE


@pytest.mark.parametrize("name", ["vae_a", "vae_b"])
@pytest.mark.parametrize(("latents", "expected"), [(None, "decoded_single_call"), (1, "decoded_one_latent")])
def test_single_call_equals_reference(name: str, latents: int | None, expected: str) -> None:
    """All latents as one slice, and one latent alone, give the reference's frames."""
    case = golden.load(name)
    with torch.inference_mode():
        frames = case_models.decoder(case)(case["latent"][:, :, :latents], CausalState())
    assert golden.relative_error(frames, case[expected]) < golden.TOLERANCE


def test_the_kernel_gives_the_reference_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """With norm, condition and SiLU fused the first latent still gives the reference's frame."""
    case = golden.load("vae_a")
    decoder, state = case_models.decoder(case), CausalState()
    calls = []
    kernel = vae_decoder.spatial_norm_silu
    monkeypatch.setattr(vae_decoder, "spatial_norm_silu", lambda *rest: (calls.append(rest), kernel(*rest))[1])
    with torch.inference_mode(), launch.preferring("triton"):
        frames = decoder(case["latent"][:, :, :1], state)
    assert golden.relative_error(frames, case["decoded_one_latent"]) < golden.TOLERANCE
    assert len(calls) == sum(isinstance(part, vae_decoder.SpatialNorm) for part in decoder.modules())


def test_first_frames_do_not_depend_on_later_slices() -> None:
    """What a slice gives does not change with the latents of later slices."""
    case = golden.load("vae_a")

    def run(latents: Tensor) -> Tensor:
        state = CausalState()
        return torch.cat(
            [case_models.decoder(case)(part, state) for part in torch.split(latents, [3, 2, 2], dim=2)], dim=2
        )

    changed = case["latent"].clone()
    changed[:, :, 3:] += 1
    with torch.inference_mode():
        one, other = run(case["latent"]), run(changed)
    assert torch.equal(one[:, :, :9], other[:, :, :9])
    assert not torch.equal(one[:, :, 9], other[:, :, 9])
