"""All stages by name, with their default hyperparameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.loading.weights import load_component
from engine.training.run import TrainingStage
from engine.training.setup import StageSetup
from engine.training.stages.autoencoder import AutoencoderStage
from engine.training.stages.decoder import DecoderStage
from engine.training.stages.distill import DistillStage
from engine.training.stages.enlarger import EnlargerStage
from engine.training.stages.extractor import ExtractorStage
from engine.training.stages.planner import PlannerStage
from engine.training.stages.reader import ReaderStage
from engine.training.stages.renderer import RendererStage
from engine.training.stages.sketch import SketchStage
from engine.training.stages.text import TextStage
from engine.training.stages.tokenizer import TokenizerStage


@dataclass(frozen=True, slots=True)
class StageDefaults:
    """Constructor of a stage and its hyperparameters for `mini`; minutes are of one CPU core."""

    make: Callable[[StageSetup], TrainingStage]
    minutes: float
    batch: int
    lr: float
    muon_lr: float = 0.0
    cold: str = ""  # why it has no warm start


STAGES = {
    "autoencoder": StageDefaults(AutoencoderStage, 12, 6, 1.5e-3, 5e-3),
    "tokenizer": StageDefaults(TokenizerStage, 40, 24, 2e-3, cold="it starts without quantisation"),
    "extractor": StageDefaults(ExtractorStage, 30, 32, 1e-3),
    "text": StageDefaults(TextStage, 12, 128, 2e-3),
    "reader": StageDefaults(ReaderStage, 60, 64, 1.5e-3, 8e-3),
    "planner": StageDefaults(PlannerStage, 60, 16, 1.5e-3, 8e-3),
    "renderer": StageDefaults(RendererStage, 240, 8, 1e-3, 3e-3),
    "sketch": StageDefaults(SketchStage, 60, 24, 1.5e-3, 4e-3),
    "decoder": StageDefaults(DecoderStage, 24, 6, 1e-3, 3e-3, cold="it always starts from the weights folder"),
    "enlarger": StageDefaults(EnlargerStage, 60, 6, 1e-3, 3e-3),
    "distill": StageDefaults(DistillStage, 60, 8, 3e-4, 1e-3, cold="it always starts from the weights folder"),
}


def build(name: str, setup: StageSetup) -> TrainingStage:
    """Makes the stage `name`, with `warm_start` from its weights. Raises ValueError if weights of earlier stages are
    missing or do not fit, the videos cannot be used, or the stage has no such data or no warm start."""
    if setup.warm_start and STAGES[name].cold:
        raise ValueError(f"stage {name!r} has no --warm-start: {STAGES[name].cold}")
    stage = STAGES[name].make(setup)
    if setup.warm_start:
        for component, module in stage.components.items():
            load_component(setup.weights, component, module)
    return stage
