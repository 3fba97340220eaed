"""`convert DIR OUT`: published weights to our own layout, sharded safetensors and one `config.json`."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tqdm import tqdm

from engine.config import EngineConfig, preset
from engine.loading.download import CHECKSUMS, fetch, verify
from engine.loading.filling import check, owners_of, raise_faults, stored_bytes
from engine.loading.hub_names import variant_of
from engine.loading.modules import build
from engine.loading.published_files import extractor_path
from engine.loading.tensor_files import Source, not_finite_text, write_safetensors
from engine.loading.weights import is_own, open_folder, text_folders, text_places, write_description
from engine.semantic.theia import Theia
from engine.wire.files import explained, unfinished

SHARD_BYTES = 1 << 30
_EXTRACTOR_OWN = "theia.safetensors"
_NOT_ENCODER = shutil.ignore_patterns("*.h5", "*.msgpack", "*.ot", "*.bin", "*.md", ".*")


def convert(folder: Path, out: Path, config: EngineConfig, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the weights of a folder anew, in the types that they are stored in, straight from the mapped files.

    The feature extractor and the text encoders come along if the folder has them.

    Args:
        folder: as published, or in our own layout.
        out: folder to make; it must not exist or be empty.
        shard_bytes: about the largest size of a file.

    Raises:
        ValueError: naming every fault in the files, or if `out` holds something. Nothing is left in `out` then.
    """
    check_folder(out)
    out = Path(os.path.realpath(out))  # a link stays one
    components = build(config)
    if (variant_of(folder / _EXTRACTOR_OWN) if is_own(folder) else extractor_path(folder)).is_file():
        with torch.device("meta"):
            components["theia"] = Theia(config.theia)
    sources = open_folder(folder, components, config.name)
    check(components, sources)
    owners = owners_of(sources)
    total, faults = stored_bytes(owners.values()), []
    with _whole_or_nothing(out) as partial, tqdm(total=total, unit="B", unit_scale=True, desc=out.name) as bar:
        for component in components:
            for size, bad in _write_component(partial, component, owners, shard_bytes):
                faults += bad
                bar.update(size)
        raise_faults(faults)
        for text, place in zip(text_folders(folder), text_places(partial), strict=True):
            if text.is_dir():
                shutil.copytree(text, place, ignore=_NOT_ENCODER)
        write_description(partial, config.name, "python -m engine convert")


def check_folder(out: Path) -> None:
    """Raises ValueError if a folder to make is there and not empty, or OSError if it cannot be made."""
    out = out.resolve()
    with explained(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} is not empty: give a new folder")
        if (partial := _partial(out)).exists():
            raise ValueError(f"{partial} is left of a conversion that was cut off, or of one that runs: delete it")
        above = next(folder for folder in partial.parents if folder.exists())
        with unfinished(above / f".{os.getpid()}.part") as trial:
            trial.mkdir()


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".part")


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which is missing or empty: renamed to it at the end, or deleted after an error."""
    partial = _partial(out)
    # Before it counts as ours, since it may be that of another conversion.
    partial.mkdir(parents=True)
    with unfinished(partial):
        yield partial
        partial.rename(out)


def _write_component(
    folder: Path, component: str, owners: Mapping[str, tuple[Source, str]], shard_bytes: int
) -> Iterator[tuple[int, list[str]]]:
    """Writes a component's shards; yields the bytes of each, and a line for every tensor with NaN or infinities."""
    start, pattern = component + ".", component + "{suffix}.safetensors"
    own = {name.removeprefix(start): owner for name, owner in owners.items() if name.startswith(start)}
    sizes = {name: source.file.read(key).to("meta") for name, (source, key) in own.items()}
    split = split_torch_state_dict_into_shards(sizes, filename_pattern=pattern, max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: own[name][0].file.read(own[name][1]) for name in names}
        faults = [not_finite_text(*own[name]) for name in write_safetensors(folder / file, tensors)]
        yield sum(tensor.nbytes for tensor in tensors.values()), faults
        del tensors
        # A mapping counts as memory in use for as long as it stands.
        for source, _ in own.values():
            source.file.close()


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises ValueError or OSError for a mistake of the caller or a fault in the files."""
    parser = argparse.ArgumentParser(prog="python -m engine convert", description=__doc__)
    parser.add_argument("source", metavar="DIR", help="folder of the published weights, or a hub id to download")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--md5", action="store_true", help="compare a folder's files with the published md5 first")
    arguments = parser.parse_args(argv)
    check_folder(arguments.out)
    folder = fetch(arguments.source)
    if arguments.md5:
        verify(folder, CHECKSUMS)
    convert(folder, arguments.out, preset("landiff"))
    return 0
