"""Public libraries' models do the same work as ours, and proofs find where they do not."""

from dataclasses import replace

import torch
from tiny import randomize, tiny_config, tiny_model

from engine.bench import peers
from engine.bench.peers import ALLOWED_ERROR, prove, relative
from engine.config import preset
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.renderer import DiTRenderer
from engine.semantic.planner import Planner

MOVED = 1e-3  # what one changed weight must show at least


@torch.inference_mode()
def test_transformer_with_our_weights_answers_as_our_base_network() -> None:
    """Same windows, same text, same time: same prediction; one changed weight is seen."""
    config = tiny_config().renderer
    dit = replace(config.dit, head="linear")
    ours, theirs = DiTRenderer(replace(config, dit=dit)).eval(), peers.transformer(dit, dit.layers).eval()
    randomize("base", ours.base)
    peers.fill_transformer(theirs, ours.base)
    x = torch.randn(2, dit.frames, dit.channels, dit.height, dit.width)
    text, time = torch.randn(2, dit.text_length, dit.text_dim), torch.tensor([0.25, 0.75])
    answer = theirs(x, text, time * dit.time_scale, return_dict=False)[0]
    assert relative(answer, ours.predict(x, time, text, torch.zeros_like(x))) <= ALLOWED_ERROR
    ours.base.blocks[0].modulation.weight[0] += 1.0
    assert relative(answer, ours.predict(x, time, text, torch.zeros_like(x))) > MOVED


@torch.inference_mode()
def test_llama_with_our_weights_answers_as_our_planner() -> None:
    """Same sequence, same logits, at every place; one changed weight is seen."""
    config = tiny_config().planner
    ours, theirs = Planner(config).eval(), peers.llama(config, 40).eval()
    randomize("planner", ours)
    peers.fill_llama(theirs, ours)
    embeddings = torch.randn(2, 40, config.hidden)
    answer = theirs(inputs_embeds=embeddings, return_dict=False)[0]
    assert relative(answer, ours(embeddings)) <= ALLOWED_ERROR
    ours.blocks[0].qkv.weight[0] += 1.0
    assert relative(answer, ours(embeddings)) > MOVED


def test_a_sound_model_passes_every_proof() -> None:
    """Peers do our work."""
    assert len(prove(tiny_model())) == 2


def test_peers_have_our_sizes() -> None:
    """The published sizes, and for `mini` a decoder of between half and twice as many parameters."""
    for config in (preset("mini"), preset("landiff")):
        with torch.device("meta"):
            theirs = peers.transformer(config.renderer.dit, 5)
            planner = peers.llama(config.planner, 100)
            vae = peers.autoencoder(config.vae, config.height_px, config.width_px)
        assert len(theirs.transformer_blocks) == 5
        assert theirs.proj_out.in_features == config.renderer.dit.hidden
        assert planner.lm_head.weight.shape == (config.planner.vocab, config.planner.hidden)
        if isinstance(config.vae, peers.VAEConfig):
            assert (vae.config.block_out_channels, vae.config.layers_per_block) == ((128, 256, 256, 512), 3)
        else:
            with torch.device("meta"):
                ours = TinyVAE(config.vae)
                video = vae.decode(torch.zeros(1, 24, 7, 16, 24), return_dict=False)[0]
            assert 0.5 < _decoder_parameters(vae) / _decoder_parameters(ours) < 2
            assert video.shape == (1, 3, config.first_chunk_frames, config.height_px, config.width_px)


def _decoder_parameters(vae: torch.nn.Module) -> int:
    return sum(weight.numel() for name, weight in vae.named_parameters() if name.startswith("decode"))
