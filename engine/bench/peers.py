"""Public libraries' models at our sizes, and proofs that they do our work: with our weights they give our results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from engine.config import FRAMES_PER_LATENT
from engine.live.noise import normal
from engine.loading.model import Model
from engine.perceptual.cogvideox.vae import VAEConfig
from engine.perceptual.dit import DiT, DiTConfig
from engine.perceptual.mini.vae import TinyVAEConfig
from engine.perceptual.renderer import DiTRenderer
from engine.semantic.planner import Planner, PlannerConfig

PROVED_LAYERS = 2  # show that one follows the other rightly; more show nothing new
PROVED_TOKENS = 48
ALLOWED_ERROR = 1e-5  # relative, in float32
FINAL_NORM_EPS = 1e-6  # of the published head
TRANSFORMER_NAMES = {
    "patch_embed.proj": "patch", "patch_embed.text_proj": "text", "time_embedding.linear_1": "time.0",
    "time_embedding.linear_2": "time.2", "norm_final": "final_norm", "norm_out.norm": "head.norm.norm",
    "norm_out.linear": "head.norm.modulation", "proj_out": "head.linear",
}  # fmt: skip
TRANSFORMER_BLOCK_NAMES = {
    "norm1.norm": "norm1", "norm2.norm": "norm2", "attn1.norm_q": "query_norm", "attn1.norm_k": "key_norm",
    "attn1.to_out.0": "out", "ff.net.0.proj": "mlp_in", "ff.net.2": "mlp_out",
}  # fmt: skip
LLAMA_NAMES = {"model.embed_tokens": "tokens", "model.norm": "norm", "lm_head": "head"}
LLAMA_BLOCK_NAMES = {
    "self_attn.o_proj": "out", "input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip


def transformer(config: DiTConfig, layers: int) -> Any:
    """diffusers' CogVideoX transformer at the sizes of our DiT, with that many layers."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=config.heads, attention_head_dim=config.hidden // config.heads, num_layers=layers,
        in_channels=config.channels, out_channels=config.channels, patch_size=config.patch,
        text_embed_dim=config.text_dim, max_text_seq_length=config.text_length, time_embed_dim=config.time_dim,
        sample_width=config.width, sample_height=config.height, spatial_interpolation_scale=config.position_scale,
        sample_frames=(config.frames - 1) * FRAMES_PER_LATENT + 1,
    )  # fmt: skip


def llama(config: PlannerConfig, length: int) -> Any:
    """transformers' LLaMA at our planner's sizes, for sequences of up to `length`."""
    sizes = LlamaConfig(
        vocab_size=config.vocab, hidden_size=config.hidden, intermediate_size=config.mlp, rms_norm_eps=1e-5,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, hidden_act="gelu_pytorch_tanh",
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, max_position_embeddings=length,
        bos_token_id=config.bos, eos_token_id=config.eos, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(sizes)


def autoencoder(config: TinyVAEConfig | VAEConfig, height_px: int, width_px: int) -> Any:
    """diffusers' CogVideoX autoencoder for pictures of that size: as published, or small beside `mini`."""
    # The one whose decoder is nearest to ours in parameters, of widths in multiples of 8.
    sizes: dict[str, Any] = {"block_out_channels": (24, 48, 48, 96), "layers_per_block": 1, "norm_num_groups": 8}
    if isinstance(config, VAEConfig):
        widths = tuple(config.width * multiplier for multiplier in config.multipliers)
        sizes = {"block_out_channels": widths, "layers_per_block": config.blocks}
    sizes |= {"sample_height": height_px, "sample_width": width_px, "latent_channels": config.latent_channels}
    return AutoencoderKLCogVideoX(**sizes)


def placed(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A module made on the device, in that dtype, without gradients."""
    with device:
        module = make()
    # diffusers' own `to` warns with an empty list of names.
    return nn.Module.to(module, device=device, dtype=dtype).requires_grad_(False).eval()


def prove(model: Model) -> dict[str, float]:
    """Takes seconds; returns each proof's relative error.

    Raises:
        ArithmeticError: an error is larger than allowed, or not a number; it names all that are.
    """
    torch.manual_seed(0)
    # Convolutions on CUDA would round float32 to 10 bits.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        errors = {
            "diffusers' transformer with our weights": _transformer_error(model),
            "transformers' LLaMA with our weights": _llama_error(model),
        }
    # An error that is not a number is not less than anything.
    wrong = [f"{what} {error:.1e}" for what, error in errors.items() if not error <= ALLOWED_ERROR]
    if wrong:
        raise ArithmeticError(f"not measured, because these differ: {'; '.join(wrong)}")
    return errors


def relative(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float((result.double() - expected).norm() / expected.double().norm())


def _transformer_error(model: Model) -> float:
    """Of diffusers' answer beside our base network's, with control at its start of zero and a linear head."""
    dit = replace(model.config.renderer.dit, layers=PROVED_LAYERS, head="linear")
    small = replace(model.config.renderer, dit=dit, control_layers=1)
    ours = placed(lambda: DiTRenderer(small), model.device, torch.float32)
    theirs = placed(lambda: transformer(dit, PROVED_LAYERS), model.device, torch.float32)
    # Every part must matter, also those that start at zero.
    for parameter in ours.base.parameters():
        parameter.normal_(0.0, 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    fill_transformer(theirs, ours.base)
    x = normal((1, dit.frames, dit.channels, dit.height, dit.width), "check x").to(model.device)
    text = normal((1, dit.text_length, dit.text_dim), "check text").to(model.device)
    time = torch.full((1,), 0.5, device=model.device)
    condition = x.new_zeros(1, dit.frames, dit.condition_channels, dit.height, dit.width)
    answer = theirs(x, text, time * dit.time_scale, return_dict=False)[0]
    return relative(answer, ours.predict(x, time, text, condition))


def _llama_error(model: Model) -> float:
    """Of the logits of LLaMA beside our planner's."""
    config = replace(model.config.planner, layers=PROVED_LAYERS)
    ours = placed(lambda: Planner(config), model.device, torch.float32)
    theirs = placed(lambda: llama(config, PROVED_TOKENS), model.device, torch.float32)
    fill_llama(theirs, ours)
    embeddings = normal((1, PROVED_TOKENS, config.hidden), "check plan").to(model.device)
    return relative(theirs(inputs_embeds=embeddings, return_dict=False)[0], ours(embeddings))


def fill_transformer(peer: Any, base: DiT) -> None:
    """Gives a peer with as many layers our base network's weights; its head must be linear."""
    peer.norm_out.norm.eps = FINAL_NORM_EPS
    _copy(peer, base, TRANSFORMER_NAMES)
    for theirs, ours in zip(peer.transformer_blocks, base.blocks, strict=True):
        block: Any = ours
        _copy(theirs, block, TRANSFORMER_BLOCK_NAMES)
        projections = (theirs.attn1.to_q, theirs.attn1.to_k, theirs.attn1.to_v)
        for name in ("weight", "bias"):
            for projection, value in zip(projections, getattr(block.qkv, name).chunk(3), strict=True):
                getattr(projection, name).copy_(value)
            # Ours: image for attention and MLP, then text for both; theirs: a layer each for attention and MLP.
            image_attention, image_mlp, text_attention, text_mlp = getattr(block.modulation, name).chunk(4)
            getattr(theirs.norm1.linear, name).copy_(torch.cat([image_attention, text_attention]))
            getattr(theirs.norm2.linear, name).copy_(torch.cat([image_mlp, text_mlp]))


def fill_llama(peer: Any, planner: Planner) -> None:
    """Gives the peer our planner's weights, and our last norm, which has a mean and a bias."""
    peer.model.norm = nn.LayerNorm(planner.config.hidden).to(peer.lm_head.weight)
    _copy(peer, planner, LLAMA_NAMES)
    for theirs, ours in zip(peer.model.layers, planner.blocks, strict=True):
        block: Any = ours
        _copy(theirs, block, LLAMA_BLOCK_NAMES)
        query, key, value = block.qkv.weight.chunk(3)
        for projection, weight in ((theirs.self_attn.q_proj, query), (theirs.self_attn.k_proj, key)):
            # Our head channels rotate in neighbouring pairs, theirs in two halves.
            halves = weight.unflatten(0, (block.heads, -1, 2)).transpose(1, 2)
            projection.weight.copy_(halves.reshape(weight.shape))
        theirs.self_attn.v_proj.weight.copy_(value)


def _copy(theirs: nn.Module, ours: nn.Module, names: dict[str, str]) -> None:
    """Copies weights between submodules, their name -> our name."""
    for name, our_name in names.items():
        theirs.get_submodule(name).load_state_dict(ours.get_submodule(our_name).state_dict())
