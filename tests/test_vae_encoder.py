"""The VAE's encoder against diffusers' with the same random weights."""

from __future__ import annotations

import re

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from engine.perceptual.cogvideox.causal import CausalState
from engine.perceptual.cogvideox.vae import VAE, VAEConfig
from tests import golden

SIZES = VAEConfig(latent_channels=4, width=32, multipliers=(1, 2, 2, 1), blocks=1, latent_scale=1.5)


def _theirs() -> AutoencoderKLCogVideoX:
    torch.manual_seed(3)
    block = "CogVideoX{}Block3D"
    model = AutoencoderKLCogVideoX(
        down_block_types=(block.format("Down"),) * 4,
        up_block_types=(block.format("Up"),) * 4,
        block_out_channels=(32, 64, 64, 32),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=32,
        scaling_factor=1.5,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def _ours(theirs: AutoencoderKLCogVideoX) -> VAE:
    """Our VAE with the weights of theirs: levels of the decoder are numbered the other way round."""

    def name(key: str) -> str:
        key = re.sub(r"up_blocks\.(\d)", lambda found: f"levels.{3 - int(found[1])}", key)
        key = key.replace("down_blocks.", "levels.").replace("mid_block.resnets.", "middle.")
        key = key.replace("resnets.", "blocks.").replace("conv_shortcut", "shortcut")
        key = re.sub(r"(down|up)samplers\.0\.conv", r"\1sample", key)
        key = key.replace("norm_layer", "norm").replace("conv_y.conv", "scale").replace("conv_b.conv", "shift")
        return re.sub(r"(conv_in|conv_out|conv1|conv2)\.conv", r"\1", key)

    ours = VAE(SIZES)
    ours.load_state_dict({name(key): value for key, value in theirs.state_dict().items()}, strict=True)
    return ours.eval()


def _video(frames: int) -> Tensor:
    return torch.rand(1, frames, 3, 16, 24, generator=torch.Generator().manual_seed(4)) * 2 - 1


def test_encoder_equals_diffusers() -> None:
    """Mean and variance of one frame, one slice and several slices equal diffusers'."""
    theirs = _theirs()
    ours = _ours(theirs)
    for frames in (1, 9, 17):
        video = _video(frames).transpose(1, 2)
        state = CausalState()
        parts = [video[:, :, :9], *(video[:, :, start : start + 8] for start in range(9, frames, 8))]
        with torch.inference_mode():
            expected = theirs.encode(video).latent_dist
            moments = [ours.encoder(part, state) for part in parts]
        mean, log_variance = (torch.cat([pair[part] for pair in moments], dim=2) for part in range(2))
        assert golden.relative_error(mean, expected.mean) < golden.TOLERANCE
        assert golden.relative_error(log_variance.clamp(-30, 20), expected.logvar) < golden.TOLERANCE


def test_decoder_equals_diffusers() -> None:
    """The decoder too equals diffusers', which names and nests the same layers otherwise."""
    theirs = _theirs()
    latents = torch.randn(1, 3, 4, 2, 3, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = theirs.decoder(latents.transpose(1, 2))[0].transpose(1, 2)
        actual = _ours(theirs).decode(latents * SIZES.latent_scale, CausalState())
    assert golden.relative_error(actual, expected) < golden.TOLERANCE
