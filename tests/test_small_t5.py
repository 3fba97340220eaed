"""The small text encoder, its tokenizer, and the tokenizer's making."""

import random
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention as TheirAttention

from engine.config import preset
from engine.text.small_t5 import TOKENIZER_FOLDER, SmallT5, load_vocabulary
from engine.text.t5 import relative_buckets
from engine.training.world.captions import caption, make_tokenizer, random_label


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SmallT5:
    folder = tmp_path_factory.mktemp("weights")
    make_tokenizer(folder)
    torch.manual_seed(0)
    return SmallT5(preset("mini").text, load_vocabulary(folder)).eval()


def test_every_caption_fits_and_every_word_is_known(encoder: SmallT5) -> None:
    """No caption of the grammar is cut, and none holds an unknown word."""
    rng = random.Random(0)
    assert all(encoder.unread(caption(random_label(rng), rng)) == () for _ in range(500))


@torch.no_grad()
def test_captions_are_encoded_as_transformers_does(encoder: SmallT5, tmp_path: Path) -> None:
    """For words that are known, embeddings are those of transformers' encoder and tokenizer, bit for bit."""
    tokenizer = make_tokenizer(tmp_path)
    rng = random.Random(1)
    captions = [caption(random_label(rng), rng) for _ in range(50)]
    pieces = tokenizer(captions, max_length=24, padding="max_length", truncation=True, return_tensors="pt")
    config = encoder.config
    peer = T5EncoderModel(
        T5Config(
            vocab_size=config.vocabulary,
            d_model=config.hidden,
            d_kv=config.hidden // config.heads,
            d_ff=config.mlp,
            num_layers=config.layers,
            num_heads=config.heads,
            feed_forward_proj="gated-gelu",
        )
    ).eval()
    peer.load_state_dict(encoder.encoder.state_dict())
    hidden = peer(input_ids=pieces["input_ids"], attention_mask=pieces["attention_mask"]).last_hidden_state
    assert torch.equal(encoder.encode(captions), hidden * pieces["attention_mask"].unsqueeze(-1))


@torch.no_grad()
def test_prompts_that_differ_in_known_words_differ(encoder: SmallT5) -> None:
    """Unknown words before them hide no known one."""
    start = "A beautiful cinematic wide shot of a "
    one, other = encoder.encode([start + "green airplane at night", start + "red car in the desert"])
    assert not torch.equal(one, other)


@torch.no_grad()
def test_what_is_padding_is_zero(encoder: SmallT5) -> None:
    """A prompt's embedding does not depend on the prompts beside it, and ends in zeros."""
    short, long = "a red ball", "a blue little fish swims gently upwards under the night sky"
    alone, beside = encoder.encode([short])[0], encoder.encode([long, short])[1]
    torch.testing.assert_close(alone, beside)
    assert alone[0].abs().sum() > 0 and alone[-1].abs().sum() == 0


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["a zebra dances", "KÄFER 🚗 喵", "word " * 500, "a", "%s {} \\n <pad>"])
def test_other_words_do_no_harm(encoder: SmallT5, prompt: str) -> None:
    """Anything is encoded to finite numbers of the usual shape."""
    embedding = encoder.encode([prompt])
    assert embedding.shape == (1, 24, 128)
    assert torch.isfinite(embedding).all()


@torch.no_grad()
def test_case_does_not_matter(encoder: SmallT5) -> None:
    """A shouted prompt is the same prompt."""
    assert torch.equal(encoder.encode(["A RED Ball"]), encoder.encode(["a red ball"]))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(ValueError, match=r"holds no tokenizer.json"):
        load_vocabulary(tmp_path)


def test_a_tokenizer_too_large_is_refused(tmp_path: Path) -> None:
    """Both numbers are named."""
    config = preset("mini").text
    with pytest.raises(ValueError, match="pieces, the encoder only 10"):
        SmallT5(type(config)(config.hidden, 1, 4, 16, 10, 24), make_tokenizer(tmp_path).get_vocab())


def test_a_damaged_vocabulary_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / TOKENIZER_FOLDER / "tokenizer.json"
    path.parent.mkdir()
    path.write_text('{"model": {"vocab": 3}}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        load_vocabulary(tmp_path)


def test_far_positions_share_a_bucket() -> None:
    """Buckets are those of transformers' T5, on both sides of the query."""
    places = torch.arange(300)
    theirs = TheirAttention._relative_position_bucket(places[None, :] - places[:, None])
    assert torch.equal(relative_buckets(300, torch.device("cpu")), theirs)
