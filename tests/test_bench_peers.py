"""Public libraries' models that do the same work as ours."""

from dataclasses import replace

import pytest
import torch
from tiny import randomize, tiny_config

from engine.bench import peers
from engine.bench.proofs import relative
from engine.config import preset
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.renderer import Renderer
from engine.semantic.planner import Planner

EXACT = 1e-5
MOVED = 1e-3  # what one changed weight must show at least


@torch.inference_mode()
def test_transformer_with_our_weights_answers_as_our_base_network() -> None:
    """Same windows, same text, same time: same prediction; one changed weight is seen."""
    config = tiny_config().renderer
    dit = replace(config.dit, head="linear")
    ours, theirs = Renderer(replace(config, dit=dit)).eval(), peers.transformer(dit, dit.layers)
    randomize("base", ours.base)
    peers.fill_transformer(theirs, ours.base)
    x = torch.randn(2, dit.frames, dit.channels, dit.height, dit.width)
    text, time = torch.randn(2, dit.text_length, dit.text_dim), torch.tensor([0.25, 0.75])
    expected = ours.predict(x, time, text, torch.zeros_like(x))
    answer = theirs(x, text, time * dit.time_scale, return_dict=False)[0]
    assert relative(answer, expected) <= EXACT
    ours.base.blocks[0].modulation.weight[0] += 1.0
    assert relative(answer, ours.predict(x, time, text, torch.zeros_like(x))) > MOVED


@torch.inference_mode()
def test_llama_with_our_weights_answers_as_our_planner() -> None:
    """Same sequence, same logits, at every place; one changed weight is seen."""
    config = tiny_config().planner
    ours, theirs = Planner(config).eval(), peers.llama(config, 40)
    randomize("planner", ours)
    peers.fill_llama(theirs, ours)
    embeddings = torch.randn(2, 40, config.hidden)
    answer = theirs(inputs_embeds=embeddings, return_dict=False)[0]
    assert relative(answer, ours(embeddings)) <= EXACT
    ours.blocks[0].qkv.weight[0] += 1.0
    assert relative(answer, ours(embeddings)) > MOVED


def test_autoencoder_of_mini_is_the_nearest_in_parameters() -> None:
    """Its decoder has between half and twice as many; it makes as many pictures of the same size."""
    config = preset("mini")
    with torch.device("meta"):
        wanted = peers.decoder_parameters(TinyVAE(config.vae))
        peer = peers.autoencoder(config.vae, config.height_px, config.width_px)
        assert 0.5 < peers.decoder_parameters(peer) / wanted < 2
        video = peer.decode(torch.zeros(1, 24, 7, 16, 24), return_dict=False)[0]
    assert video.shape == (1, 3, config.first_hop_frames, config.height_px, config.width_px)


def test_autoencoder_of_the_published_model_has_its_sizes() -> None:
    """The peer of the published autoencoder is the published autoencoder."""
    config = preset("landiff")
    with torch.device("meta"):
        peer = peers.autoencoder(config.vae, config.height_px, config.width_px)
    assert peer.config.block_out_channels == (128, 256, 256, 512)
    assert peer.config.layers_per_block == 3


@pytest.mark.parametrize("name", ["mini", "landiff"])
def test_peers_have_our_sizes(name: str) -> None:
    """Layers, width and vocabulary of each preset, without taking memory."""
    config = preset(name)
    layers = config.renderer.dit.layers + config.renderer.control_layers
    with torch.device("meta"):
        theirs = peers.transformer(config.renderer.dit, layers)
        planner = peers.llama(config.planner, 100)
    assert len(theirs.transformer_blocks) == layers
    assert theirs.proj_out.in_features == config.renderer.dit.hidden
    assert planner.lm_head.weight.shape == (config.planner.vocab, config.planner.hidden)
