"""What we are measured against: public libraries' models at our sizes, and our weights under their names.

The weights serve a proof, not a comparison of quality: a peer that computes what our module computes has as much to do.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from engine.config import FRAMES_PER_LATENT
from engine.perceptual.cogvideox.vae import VAEConfig
from engine.perceptual.dit import DiT, DiTConfig
from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig
from engine.semantic.planner import Planner, PlannerConfig

_WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128)  # of the finest level of a peer of `TinyVAE`, multiples of its norm groups
_GROUPS = 8
_MULTIPLIERS = (1, 2, 2, 4)
_FINAL_NORM_EPS = 1e-6  # of the published head


def transformer(config: DiTConfig, layers: int) -> Any:
    """diffusers' CogVideoX transformer at the sizes of our trunk, with so many layers."""
    return _still(
        CogVideoXTransformer3DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.hidden // config.heads,
            in_channels=config.channels,
            out_channels=config.channels,
            time_embed_dim=config.time_dim,
            text_embed_dim=config.text_dim,
            num_layers=layers,
            sample_width=config.width,
            sample_height=config.height,
            sample_frames=(config.frames - 1) * FRAMES_PER_LATENT + 1,
            patch_size=config.patch,
            max_text_seq_length=config.text_length,
            spatial_interpolation_scale=config.position_scale,
        )
    )


def fill_transformer(peer: Any, base: DiT) -> None:
    """Gives a peer with as many layers our base network's weights; its head must be linear."""
    peer.norm_out.norm.eps = _FINAL_NORM_EPS
    pairs = [
        (peer.patch_embed.proj, base.patch),
        (peer.patch_embed.text_proj, base.text),
        (peer.time_embedding.linear_1, base.time[0]),
        (peer.time_embedding.linear_2, base.time[2]),
        (peer.norm_final, base.final_norm),
        (peer.norm_out.norm, base.head.norm.norm),
        (peer.norm_out.linear, base.head.norm.modulation),
        (peer.proj_out, base.head.linear),
    ]
    for theirs, ours in zip(peer.transformer_blocks, base.blocks, strict=True):
        block: Any = ours
        pairs += [
            (theirs.norm1.norm, block.norm1),
            (theirs.norm2.norm, block.norm2),
            (theirs.attn1.norm_q, block.query_norm),
            (theirs.attn1.norm_k, block.key_norm),
            (theirs.attn1.to_out[0], block.out),
            (theirs.ff.net[0].proj, block.mlp_in),
            (theirs.ff.net[2], block.mlp_out),
        ]
        _fill_split(theirs, block)
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())


def _fill_split(theirs: Any, block: Any) -> None:
    """The layers that are one with us and several with them."""
    projections = (theirs.attn1.to_q, theirs.attn1.to_k, theirs.attn1.to_v)
    for name in ("weight", "bias"):
        for projection, value in zip(projections, getattr(block.qkv, name).chunk(3), strict=True):
            getattr(projection, name).copy_(value)
        # Ours: image for attention and MLP, then text for both; theirs: a layer each for attention and MLP.
        image_first, image_second, text_first, text_second = getattr(block.modulation, name).chunk(4)
        getattr(theirs.norm1.linear, name).copy_(torch.cat([image_first, text_first]))
        getattr(theirs.norm2.linear, name).copy_(torch.cat([image_second, text_second]))


def llama(config: PlannerConfig, length: int) -> Any:
    """transformers' LLaMA at our planner's sizes, for sequences of up to `length`."""
    sizes = LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        hidden_act="gelu_pytorch_tanh",
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attention_bias=False,
        tie_word_embeddings=False,
        bos_token_id=config.bos,
        eos_token_id=config.eos,
        pad_token_id=config.pad,
        attn_implementation="sdpa",
    )
    return _still(LlamaForCausalLM(sizes))


def fill_llama(peer: Any, planner: Planner) -> None:
    """Gives the peer our planner's weights, and our last norm, which has a mean and a bias."""
    peer.model.norm = nn.LayerNorm(planner.config.hidden).to(peer.lm_head.weight)
    pairs = [
        (peer.model.embed_tokens, planner.tokens),
        (peer.model.norm, planner.norm),
        (peer.lm_head, planner.head),
    ]
    for theirs, ours in zip(peer.model.layers, planner.blocks, strict=True):
        block: Any = ours
        query, key, value = block.qkv.weight.chunk(3)
        theirs.self_attn.q_proj.weight.copy_(_halves(query, block.heads))
        theirs.self_attn.k_proj.weight.copy_(_halves(key, block.heads))
        theirs.self_attn.v_proj.weight.copy_(value)
        pairs += [
            (theirs.self_attn.o_proj, block.out),
            (theirs.input_layernorm, block.attention_norm),
            (theirs.post_attention_layernorm, block.mlp_norm),
            (theirs.mlp.gate_proj, block.gate),
            (theirs.mlp.up_proj, block.up),
            (theirs.mlp.down_proj, block.down),
        ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection whose head channels rotate in neighbouring pairs -> in two halves, as theirs do."""
    halves: Tensor = weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
    return halves


def autoencoder(config: TinyVAEConfig | VAEConfig, height_px: int, width_px: int) -> Any:
    """diffusers' CogVideoX autoencoder for pictures of that size.

    Of our sizes for the published one; for `mini` the one whose decoder is nearest to ours in parameters.
    """
    sizes = {"sample_height": height_px, "sample_width": width_px, "latent_channels": config.latent_channels}
    if isinstance(config, VAEConfig):
        widths = tuple(config.width * multiplier for multiplier in config.multipliers)
        return _still(AutoencoderKLCogVideoX(block_out_channels=widths, layers_per_block=config.blocks, **sizes))
    options = [
        sizes
        | {
            "block_out_channels": tuple(width * multiplier for multiplier in _MULTIPLIERS),
            "layers_per_block": 1,
            "norm_num_groups": _GROUPS,
        }
        for width in _WIDTHS
    ]
    with torch.device("meta"):
        wanted = decoder_parameters(TinyVAE(config))
        apart = [abs(decoder_parameters(AutoencoderKLCogVideoX(**option)) - wanted) for option in options]
    return _still(AutoencoderKLCogVideoX(**options[apart.index(min(apart))]))


def decoder_parameters(vae: Any) -> int:
    """Parameters of an autoencoder's decoder."""
    return sum(weight.numel() for name, weight in vae.named_parameters() if name.startswith("decode"))


def placed(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The module there, in that type."""
    # Of diffusers' own `to` one hears a warning that names an empty list.
    return nn.Module.to(module, device=device, dtype=dtype)


def _still(module: Any) -> Any:
    return module.requires_grad_(False).eval()
