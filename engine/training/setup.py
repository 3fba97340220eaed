"""Configuration, data and weights of earlier stages, from which a training stage is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from engine.config import EngineConfig
from engine.loading.modules import build as build_modules
from engine.loading.text_files import find_text_encoders, read_text_encoders
from engine.loading.weights import has_component, load_component
from engine.semantic.theia import Theia
from engine.text.published import PublishedText, PublishedTextConfig
from engine.text.small_t5 import SmallT5, SmallT5Config, load_vocabulary, scaled_embeddings
from engine.training.sources import FolderSource, VideoSource, WorldSource
from engine.training.world.captions import make_tokenizer

TEXT_STD = 0.3  # of the word embeddings of a new text encoder
WRITTEN_BY = {"vae": "autoencoder", "theia": "extractor"}  # stages of components with another name
# Trainable parts of the renderer: beginnings of parameter names.
PARTS = {"both": ("",), "base": ("base.",), "control": ("control.", "condition."), "head": ("base.head.",)}


@dataclass(frozen=True, slots=True)
class StageSetup:
    """Options of a stage. It learns from the folder of captioned videos `data`, or from the drawn world if None.

    Methods raise ValueError for weights that are missing or do not fit, and for data that cannot be used.
    """

    config: EngineConfig
    weights: Path  # where trained weights are read and written
    data: Path | None = None
    seed: int = 0
    device: str = "cpu"
    warm_start: bool = False  # start from `weights`
    features: str = "tokens"  # of the renderer: decoded from "tokens", or those of the "teacher"
    part: str = "both"  # of the renderer, one of PARTS
    steps: int = 2  # of a student, for a chunk
    teacher_steps: int = 4  # of its teacher, for each of them
    student: Path | None = None  # where a student's weights are written

    def source(self, extracts: bool = True) -> VideoSource:
        """The data; `extracts`: the stage needs features, and so the extractor."""
        if self.data is None:
            return self.world()
        return FolderSource(self.data, self.config, self.load("theia") if extracts else None, self.device)

    def world(self) -> WorldSource:
        """The drawn world, for stages that need it."""
        if self.data is not None:
            raise ValueError("this stage needs the drawn world: leave --data away")
        if self.config.published:
            raise ValueError(f"preset {self.config.name!r} does not fit the drawn world: give --data")
        return WorldSource(self.config, self.device)

    def load(self, component: str) -> Any:
        """A component of the weights folder, frozen."""
        self.require(component)
        modules = build_modules(self.config, vocabulary=self.weights if component == "text" else None)
        with torch.device("meta"):
            modules["theia"] = Theia(self.config.theia).requires_grad_(False).eval()
        module = modules[component].to_empty(device=self.device)
        load_component(self.weights, component, module)
        return module

    def require(self, component: str) -> None:
        """Raises ValueError if the weights folder lacks a component, naming the stage that writes it."""
        # Published components come from elsewhere: their own errors say so.
        if not self.config.published and not has_component(self.weights, component):
            raise ValueError(
                f"{self.weights} has no {component}.safetensors: run stage {WRITTEN_BY.get(component, component)!r} "
                "first, or give --weights a folder that has it"
            )

    def text(self) -> SmallT5 | PublishedText:
        """The preset's text encoder, frozen."""
        if not isinstance(self.config.text, PublishedTextConfig):
            return cast(SmallT5, self.load("text"))
        encoders = find_text_encoders(self.config, self.weights)
        return read_text_encoders(self.config, encoders, torch.device(self.device))

    def new_text(self, captions: Sequence[str] | None = None) -> SmallT5:
        """A new small text encoder with the words of `captions`, or of the drawn world if None.

        With `warm_start` it has the text tokenizer of the weights folder.
        """
        config = self.config.text
        assert isinstance(config, SmallT5Config), "published text encoders are not trained"
        if self.warm_start:
            return SmallT5(config, load_vocabulary(self.weights)).to(self.device)
        text = SmallT5(config, make_tokenizer(self.weights, config.vocabulary, captions).get_vocab())
        scaled_embeddings(text, TEXT_STD)
        return text.to(self.device)
