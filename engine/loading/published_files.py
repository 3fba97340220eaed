"""The published model's files, their tensors, and the modules that they fill (REFERENCE 5.1, 5.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from engine.loading.hub_names import snapshot_of, variant_of
from engine.loading.published_names_perceptual import BASE, DIFFUSION, VAE
from engine.loading.published_names_semantic import PLANNER, THEIA_SPELLINGS, TOKENIZER, Rules, to_ours, to_published
from engine.loading.tensor_files import Source, open_tensors

LATEST = "latest"  # file that names the folder of the current checkpoint beside it
RENDERER_TEXT = "CogVideoX-2b-sat/t5-v1_1-xxl"
# Neither comes with the release: what its folder is called is our choice.
PLANNER_TEXT = "flan-t5-xxl"
EXTRACTOR = "theia/model.safetensors"
EXTRACTOR_HUB = "theiainstitute/theia-base-patch16-224-cddsv"
_EXTRACTOR_EXTRAS = ("backbone.model.pooler.", "pooler.", "translator.", "backbone.processor.")

MAIN: Rules = tuple((pattern.replace(r"model\.", r"model\.main_model\.", 1), name) for pattern, name in BASE)
_FIRST_STAGE: Rules = tuple((r"first_stage_model\." + pattern, name) for pattern, name in VAE)


@dataclass(frozen=True, slots=True)
class Section:
    """Tensors of one of our components in a published file."""

    component: str
    rules: Rules
    part: str = ""  # prefix of our names that belong to the section
    scope: str = ""  # prefix that the rules put before our names
    required: bool = True


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of weights. Where several hold the same tensor, the last in `FILES` wins."""

    name: str
    sections: tuple[Section, ...]
    inner: str | None = None
    ignored: tuple[str, ...] = ()

    def keys(self, components: Mapping[str, nn.Module], required: bool = True) -> dict[str, str]:
        """Published key -> COMPONENT.NAME of every tensor of the sections that are required, or of those that are not.

        Components that are not given are passed over.
        """
        return {
            to_published(section.scope + name, section.rules): f"{section.component}.{name}"
            for section in self.sections
            if section.required == required and section.component in components
            for name in components[section.component].state_dict()
            if name.startswith(section.part)
        }

    def is_elsewhere(self, key: str, components: Mapping[str, nn.Module]) -> bool:
        """Whether a published key belongs to a component that is not given."""
        for section in self.sections:
            if section.component not in components:
                try:
                    name = to_ours(key, section.rules)
                except KeyError:
                    continue
                if name.startswith(section.scope + section.part):
                    return True
        return False

    def path(self, folder: Path) -> Path:
        """The file in a folder; `latest` may name another checkpoint than the one first published.

        Raises:
            ValueError: if `latest` does not hold the name of a folder.
        """
        path = folder / self.name
        latest = path.parents[1] / LATEST
        if self.inner != "module" or not latest.is_file():
            return path
        number = latest.read_text(encoding="utf-8", errors="replace").strip()
        if not re.fullmatch(r"[\w-]+", number):
            raise ValueError(f"{latest} holds {number[:40]!r}, expected the name of the folder beside it")
        return path.parents[1] / number / path.name


FILES = (
    PublishedFile(
        "llm/model.safetensors", (Section("planner", PLANNER),), None, ("tokenizer.", "cond_model.text_encoder.")
    ),
    PublishedFile(
        "CogVideoX-2b-sat/transformer/1000/mp_rank_00_model_states.pt", (Section("renderer", BASE, "base."),), "module"
    ),
    PublishedFile("CogVideoX-2b-sat/vae/3d-vae.pt", (Section("vae", VAE),), "state_dict", ("loss",)),
    PublishedFile("tokenizer/model.safetensors", (Section("tokenizer", TOKENIZER),)),
    PublishedFile(
        "diffusion/1/mp_rank_00_model_states.pt",
        (
            Section("renderer", DIFFUSION, "control."),
            Section("renderer", DIFFUSION, "condition."),
            Section("tokenizer", DIFFUSION, scope="tokenizer."),
            Section("renderer", MAIN, "base.", required=False),
            Section("vae", _FIRST_STAGE, required=False),
        ),
        "module",
        # The file is loaded loosely by the release and may hold these too; none is part of what runs here.
        ("conditioner.", "first_stage_model.loss", "loss_fn.", "denoiser.", "sampler."),
    ),
)
"""Later files override earlier ones."""


def open_published(folder: Path, components: Mapping[str, nn.Module]) -> list[Source]:
    """Opens the files of a published folder that hold these components, lowest precedence first.

    Raises:
        ValueError: naming every file that is missing, cut short or refused.
    """
    sources, faults = [], []
    for file in FILES:
        if not any(section.component in components for section in file.sections):
            continue
        try:
            opened = open_tensors(file.path(folder), file.inner)
        except ValueError as error:
            faults.append(str(error))
            continue
        required, optional = file.keys(components), file.keys(components, required=False)
        elsewhere = frozenset(key for key in opened.shapes if file.is_elsewhere(key, components))
        sources.append(Source(opened, required, optional, file.ignored, elsewhere))
    if "theia" in components:
        try:
            sources.append(_open_extractor(extractor_path(folder), components["theia"]))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("weights cannot be read:\n" + "\n".join(faults))
    return sources


def extractor_path(folder: Path) -> Path:
    """The feature extractor's file in a folder. Raises ValueError as `snapshot_of` does."""
    place = Path(EXTRACTOR)
    return variant_of(snapshot_of(folder / place.parent) / place.name)


def _open_extractor(path: Path, module: nn.Module) -> Source:
    """Theia's own file, whose names depend on the version of transformers that wrote it."""
    if not variant_of(path).is_file():
        raise ValueError(
            f"{path} is missing, which is not part of the release: put the file from {EXTRACTOR_HUB} there"
        )
    opened = open_tensors(path)
    spellings = [
        {to_published(name, rules): f"theia.{name}" for name in module.state_dict()} for rules in THEIA_SPELLINGS
    ]
    best = max(spellings, key=lambda names: len(names.keys() & opened.shapes.keys()))
    return Source(opened, best, {}, _EXTRACTOR_EXTRAS)
