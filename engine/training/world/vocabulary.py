"""The text tokenizer of preset `mini`: the caption grammar's words, and letters for all others.

A unigram model needs no training here: a known word is one piece, and an unknown one is spelled.
"""

from __future__ import annotations

import math
import random
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from transformers import T5Tokenizer

from engine.text.small_t5 import TOKENIZER_FOLDER
from engine.training.world.captions import caption, random_label

CAPTIONS = 20_000
VOCABULARY = 256  # pieces of `mini`
SPECIAL_PIECES = ("<pad>", "</s>", "<unk>")
SPACE = "▁"  # sentencepiece's mark of a word's beginning
LETTER_SCORE = -20.0  # log probability, far below any word's


def world_captions() -> list[str]:
    """Captions of the grammar, enough to have all its words."""
    rng = random.Random("words")
    return [caption(random_label(rng), rng) for _ in range(CAPTIONS)]


def make_tokenizer(folder: Path, vocabulary: int = VOCABULARY, captions: Sequence[str] | None = None) -> T5Tokenizer:
    """Make the tokenizer and save it as `folder`/text_tokenizer.

    Args:
        vocabulary: most pieces; letters are always among them, then the most frequent words.
        captions: whose words become pieces; the grammar's if None.
    """
    texts = world_captions() if captions is None else captions
    counts = Counter(word for text in texts for word in text.replace(",", " ,").split())
    spelling = (SPACE, *string.ascii_lowercase, *string.digits, *".,!?'-")
    most = vocabulary - len(SPECIAL_PIECES) - len(spelling)
    words = [
        # In order, so that a word keeps its number when only frequencies change.
        (SPACE + word if word != "," else word, math.log(n / counts.total()))
        for word, n in sorted(counts.most_common(most))
    ]
    known = {piece for piece, _ in words}
    letters = [(piece, LETTER_SCORE) for piece in spelling if piece not in known]
    tokenizer = T5Tokenizer(vocab=[*((piece, 0.0) for piece in SPECIAL_PIECES), *words, *letters], extra_ids=0)
    tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
    return tokenizer
