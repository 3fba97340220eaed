"""The published model's files: which there are, what is in them, and how they fill the modules (FACTS 5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from engine.published_names_perceptual import BASE, DIFFUSION, VAE
from engine.published_names_semantic import PLANNER, TOKENIZER, Rules, to_published
from engine.tensor_files import Source, faults_of, is_finite, open_tensors, place

LATEST = "latest"  # file that names the folder of the current checkpoint beside it
TEXT_FOLDER = "CogVideoX-2b-sat/t5-v1_1-xxl"
_MEMORY_MARGIN = 1.05

_MAIN: Rules = tuple((pattern.replace(r"model\.", r"model\.main_model\.", 1), name) for pattern, name in BASE)
_FIRST_STAGE: Rules = tuple((r"first_stage_model\." + pattern, name) for pattern, name in VAE)


@dataclass(frozen=True, slots=True)
class Section:
    """Tensors of one of our components in a published file."""

    component: str
    rules: Rules
    part: str = ""  # beginning of our names that are meant
    scope: str = ""  # what the rules put before our names
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

    def path(self, folder: Path) -> Path:
        """Where the file lies; `latest` beside its folder may name another checkpoint than the one first published.

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
            Section("renderer", _MAIN, "base.", required=False),
            Section("vae", _FIRST_STAGE, required=False),
        ),
        "module",
        # The file is loaded loosely by the release and may hold these too; none is part of what runs here.
        ("conditioner.", "first_stage_model.loss", "loss_fn.", "denoiser.", "sampler."),
    ),
)
"""In the order of precedence: what comes later overrides."""


def shapes_of(components: Mapping[str, nn.Module]) -> dict[str, list[int]]:
    """COMPONENT.NAME -> shape of every parameter and buffer."""
    return {
        f"{component}.{name}": list(value.shape)
        for component, module in components.items()
        for name, value in module.state_dict().items()
    }


def open_published(folder: Path, components: Mapping[str, nn.Module]) -> list[Source]:
    """Opens every file of a published folder, lowest precedence first.

    Raises:
        ValueError: naming every file that is missing, cut short or refused.
    """
    sources, faults = [], []
    for file in FILES:
        try:
            opened = open_tensors(file.path(folder), file.inner)
        except ValueError as error:
            faults.append(str(error))
            continue
        sources.append(Source(opened, file.keys(components), file.keys(components, required=False), file.ignored))
    if faults:
        raise ValueError("weights cannot be read:\n" + "\n".join(faults))
    return sources


def check_memory(components: Mapping[str, nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Says before anything is loaded that it will not fit.

    Raises:
        ValueError: with what is needed and what is free.
    """
    count = sum(value.numel() for module in components.values() for value in module.state_dict().values())
    needed = round(count * dtype.itemsize * _MEMORY_MARGIN)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"the weights need {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, but {device} has only "
            f"{free / 1e9:.1f} GB free: use a smaller dtype or another device"
        )


def fill(
    components: Mapping[str, nn.Module],
    sources: list[Source],
    device: torch.device,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fills modules, which may be on the meta device, tensor by tensor.

    The host holds one tensor beside what is already placed. Nothing is placed if a name or a shape is wrong.

    Args:
        components: name -> module, in place.
        sources: lowest precedence first.
        device: where the tensors go.
        dtype: of floating tensors; as stored if None.
        progress: told tensors done and tensors in all.

    Raises:
        ValueError: naming every missing, surplus or mis-shaped tensor, or every one that holds NaN or infinities.
    """
    shapes = shapes_of(components)
    faults = faults_of(sources, shapes)
    owners = {target: (source, key) for source in sources for target, key in source.targets().items()}
    faults += [f"no file holds {target}, expected {shapes[target]}" for target in sorted(shapes.keys() - owners.keys())]
    if faults:
        raise ValueError(f"{len(faults)} faults in the weights:\n" + "\n".join(faults))
    total, done = len(owners), 0
    # File by file, since a mapped file is read fastest in one go.
    for source in sources:
        for target, key in source.targets().items():
            if owners[target][0] is not source:
                continue
            tensor = source.file.read(key)
            if not is_finite(tensor):
                faults.append(f"{source.file.path}: {key} holds NaN or infinite numbers")
            kept = tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
            component, _, name = target.partition(".")
            place(components[component], name, kept)
            done += 1
            progress(done, total)
    if faults:
        raise ValueError(f"{len(faults)} faults in the weights:\n" + "\n".join(faults))
