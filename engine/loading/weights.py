"""Weights on disk: our own layout, and telling it from the published one.

Our own layout is a folder with one safetensors file a component, or several numbered ones, and a `config.json` that
says the format, the preset and what made it. `convert` writes the published model so, training writes `mini` so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from engine.loading.download import HUB_ID
from engine.loading.filling import check, fill, raise_faults
from engine.loading.hub_names import VARIANTS, snapshot_of, variant_of
from engine.loading.published_files import EXTRACTOR, FILES, PLANNER_TEXT, RENDERER_TEXT, open_published
from engine.loading.tensor_files import Source, not_finite, open_tensors, write_safetensors
from engine.wire.files import write_atomically

SHIPPED = Path(__file__).parent.parent / "data"  # one folder a preset
DESCRIPTION = "config.json"
FORMAT = 1
SHIPPED_BYTES, SHIPPED_FILE = 60 << 20, 14 << 20  # of weights in all, and of a file's tensors
LARGE_FILE = 1 << 30
_WEIGHTS = (".safetensors", ".pt")
_SAMPLE_BYTES = 1 << 16
_PUBLISHED_PRESET = "landiff"
_PUBLISHED_NAMES = (*(file.name for file in FILES), EXTRACTOR)
_OWN_PLANNER_TEXT, _OWN_RENDERER_TEXT = "planner_text", "renderer_text"


def save_component(folder: Path, name: str, module: nn.Module, file_bytes: int | None = None) -> None:
    """Writes `folder/name.safetensors`, whole or not at all: parameters in bfloat16, buffers as they are.

    Where that would be above `file_bytes` (default: SHIPPED_FILE for what may be shipped, which is no more than
    SHIPPED_BYTES, else LARGE_FILE) there are numbered files, each whole or not at all. Files of an earlier
    save go last.
    """
    # Who loads weights does without it.
    from huggingface_hub import split_torch_state_dict_into_shards

    folder.mkdir(parents=True, exist_ok=True)
    parameters = {key for key, _ in module.named_parameters()}
    tensors = {
        key: value.detach().to("cpu", torch.bfloat16 if key in parameters else value.dtype).contiguous()
        for key, value in module.state_dict().items()
    }
    if file_bytes is None:
        small = sum(tensor.nbytes for tensor in tensors.values()) <= SHIPPED_BYTES
        file_bytes = SHIPPED_FILE if small else LARGE_FILE
    pattern = name + "{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=file_bytes)
    before = set(component_files(folder, name))
    files = {folder / file: names for file, names in split.filename_to_tensors.items()}
    for file, names in files.items():
        write_atomically(file, partial(write_safetensors, tensors={key: tensors[key] for key in names}))
    for file in before - files.keys():
        file.unlink(missing_ok=True)


def load_component(folder: Path, name: str, module: nn.Module) -> None:
    """Copies a component from a folder of either layout into a module that has memory, casting to its types.

    Raises:
        ValueError: naming the file and every missing, surplus, mis-shaped or non-finite tensor, with nothing loaded.
    """
    components = {name: module}
    sources = (open_published if is_published(folder) else open_own)(folder, components)
    check(components, sources)
    raise_faults(not_finite(sources))
    module.load_state_dict({key: source.file.read(key) for source in sources for key in source.targets().values()})


def has_component(folder: Path, name: str) -> bool:
    """Whether a folder of our own layout holds any of a component."""
    return any(path.is_file() for path in component_files(folder, name))


def write_description(folder: Path, preset: str, made_by: str) -> None:
    """Writes `folder/config.json`.

    Args:
        preset: whose sizes the weights have.
        made_by: the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, "preset": preset, "made_by": made_by}
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load_weights(
    folder: Path,
    components: Mapping[str, nn.Module],
    preset: str,
    device: torch.device,
    dtypes: Mapping[str, torch.dtype] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fills modules, which may be on the meta device, from a folder of either layout.

    Args:
        components: name -> module; those that the caller needs.
        preset: whose weights they must be.
        dtypes: as `filling.fill` takes them.
        progress: told bytes done and bytes in all.

    Raises:
        ValueError: for any fault in the files, before anything runs.
    """
    fill(components, open_folder(folder, components, preset), device, dtypes, progress)


def open_folder(folder: Path, components: Mapping[str, nn.Module], preset: str) -> list[Source]:
    """Opens a folder of weights, as published or in our own layout, which has a `config.json`.

    Raises:
        ValueError: as `check_folder` does, or naming every file that is missing, cut short or refused.
    """
    check_folder(folder, preset)
    return (open_own if is_own(folder) else open_published)(folder, components)


def check_folder(folder: Path, preset: str) -> None:
    """Raises ValueError if this is no folder, or one without weights, or with those of another preset."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds the weights")
    if is_own(folder):
        _check_description(folder / DESCRIPTION, preset)
    elif not any((folder / Path(name).parts[0]).exists() for name in _PUBLISHED_NAMES):
        raise ValueError(
            f"{folder} holds no weights: give the folder of the published files, a download of {HUB_ID}, or one that "
            "`convert` or training wrote"
        )
    elif preset != _PUBLISHED_PRESET:
        raise ValueError(
            f"{folder} holds published files, which are of preset {_PUBLISHED_PRESET!r}, not {preset!r}: use that "
            "preset or other weights"
        )


def digest(folder: Path) -> str:
    """Tells folders of weights apart, cheaply: by names and sizes of files, and by their beginnings and ends."""
    hashed = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHTS and path.is_file()):
        size = path.stat().st_size
        hashed.update(f"{path.relative_to(folder)} {size} ".encode())
        with path.open("rb") as file:
            for place in (0, max(0, size - _SAMPLE_BYTES)):
                file.seek(place)
                hashed.update(file.read(_SAMPLE_BYTES))
    return hashed.hexdigest()


def is_own(folder: Path) -> bool:
    """Whether a folder has our own layout; else it is taken for a published one."""
    return (folder / DESCRIPTION).is_file() or any(folder.glob("*.safetensors"))


def is_published(folder: Path) -> bool:
    """Whether a folder holds a published file."""
    return any(variant_of(folder / name).is_file() for name in _PUBLISHED_NAMES)


def text_folders(folder: Path) -> tuple[Path, Path]:
    """Folders of the planner's and the renderer's published text encoder, in a folder of either layout.

    Raises ValueError as `snapshot_of` does.
    """
    if is_own(folder):
        return text_places(folder)
    return snapshot_of(folder / PLANNER_TEXT), snapshot_of(folder / RENDERER_TEXT)


def text_places(folder: Path) -> tuple[Path, Path]:
    """Folders of both text encoders in our own layout, existing or not."""
    return folder / _OWN_PLANNER_TEXT, folder / _OWN_RENDERER_TEXT


def open_own(folder: Path, components: Mapping[str, nn.Module]) -> list[Source]:
    """Opens the files of our own layout, whatever the preset.

    Raises:
        ValueError: naming every file that is missing, cut short or refused.
    """
    sources, faults = [], []
    for component, module in components.items():
        try:
            files = [open_tensors(path) for path in component_files(folder, component)]
        except ValueError as error:
            faults.append(str(error))
            continue
        names = {name: f"{component}.{name}" for name in module.state_dict()}
        held = {key for file in files for key in file.shapes}
        for number, file in enumerate(files):
            # A tensor that no shard has is missed from the first.
            own = {key: names[key] for key in names if key in file.shapes or (number == 0 and key not in held)}
            sources.append(Source(file, own, {}))
    if faults:
        raise ValueError("weights cannot be read:\n" + "\n".join(faults))
    return sources


def preset_of(folder: Path) -> str:
    """Name of the preset that a folder's weights are of. Raises ValueError if it does not say so, or is damaged."""
    return _described_preset(folder / DESCRIPTION) if is_own(folder) else _PUBLISHED_PRESET


def _described_preset(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is missing, which says what the weights are of: convert or train them again")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        form, own = facts["format"], str(facts["preset"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not of this engine ({error}): convert the weights again") from error
    if form != FORMAT:
        raise ValueError(f"{path} has format {form}, this engine reads {FORMAT}: convert the weights again")
    return own


def _check_description(path: Path, preset: str) -> None:
    own = _described_preset(path)
    if own != preset:
        raise ValueError(
            f"{path} says the weights are of preset {own!r}, not {preset!r}: use that preset or other weights"
        )


def component_files(folder: Path, component: str) -> list[Path]:
    """The files of a component that must be there, one or numbered ones."""
    variant = rf"(?:\.(?:{'|'.join(VARIANTS)}))?"
    pattern = re.compile(rf"{re.escape(component)}{variant}-(\d+)-of-(\d+){variant}\.safetensors")
    numbered = {
        int(match[1]): (path, int(match[2])) for path in folder.glob("*") if (match := pattern.fullmatch(path.name))
    }
    if not numbered:
        return [variant_of(folder / f"{component}.safetensors")]
    count = next(iter(numbered.values()))[1]
    return [
        numbered[number][0] if number in numbered else folder / f"{component}-{number:05d}-of-{count:05d}.safetensors"
        for number in range(1, count + 1)
    ]
