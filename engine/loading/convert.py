"""`convert DIR OUT`: published weights to our own layout, sharded safetensors and one `config.json`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from engine.config import EngineConfig, preset
from engine.loading.download import CHECKSUMS, fetch, verify
from engine.loading.filling import check, owners_of, raise_faults, stored_bytes
from engine.loading.model import build
from engine.loading.published_files import EXTRACTOR
from engine.loading.tensor_files import Source, not_finite_text, write_safetensors
from engine.loading.weights import is_own, open_folder, text_folders, text_places, write_description
from engine.semantic.theia import Theia

SHARD_BYTES = 1 << 30
_EXTRACTOR_OWN = "theia.safetensors"
_NOT_ENCODER = shutil.ignore_patterns("*.h5", "*.msgpack", "*.ot", "*.bin", "*.md", ".*")


def convert(
    folder: Path, out: Path, config: EngineConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Writes the weights of a folder anew, as stored, tensor types unchanged, straight from the mapped files.

    The feature extractor and the text encoders are taken along if the folder has them.

    Args:
        folder: as published, or in our own layout.
        out: folder to make; it must not exist or be empty.
        progress: told bytes written and bytes in all.

    Raises:
        ValueError: naming every fault in the files, or if `out` holds something. Nothing is left in `out` then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: give a new folder")
    components = build(config)
    if (folder / (_EXTRACTOR_OWN if is_own(folder) else EXTRACTOR)).is_file():
        with torch.device("meta"):
            components["theia"] = Theia(config.theia)
    sources = open_folder(folder, components, config.name)
    check(components, sources)
    owners = owners_of(sources)
    total, done = stored_bytes(owners.values()), 0
    with _whole_or_nothing(out) as partial:
        faults = []
        for component, module in components.items():
            for size, bad in _write_component(partial, component, module, owners):
                done += size
                faults += bad
                progress(done, total)
        raise_faults(faults)
        for text, place in zip(text_folders(folder), text_places(partial), strict=True):
            if text.is_dir():
                shutil.copytree(text, place, ignore=_NOT_ENCODER)
        write_description(partial, config.name, "python -m engine convert")


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, or vanishes."""
    partial = out.with_name(out.name + ".part")
    if partial.exists():
        raise ValueError(f"{partial} is left of a conversion that was cut off, or of one that runs: delete it")
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_component(
    folder: Path, component: str, module: nn.Module, owners: Mapping[str, tuple[Source, str]]
) -> Iterator[tuple[int, list[str]]]:
    """Writes a component's shards; of each, its bytes, and one text for each tensor that holds NaN or infinities."""
    shards = _shards(component, module, owners)
    for number, names in enumerate(shards, start=1):
        path = folder / f"{component}-{number:05d}-of-{len(shards):05d}.safetensors"
        path = path if len(shards) > 1 else folder / f"{component}.safetensors"
        tensors = {name: source.file.read(key) for name, (source, key) in names.items()}
        faults = [not_finite_text(*names[name]) for name in write_safetensors(path, tensors)]
        yield sum(tensor.nbytes for tensor in tensors.values()), faults
        del tensors
        # A mapping counts as memory in use for as long as it stands.
        for source, _ in names.values():
            source.file.close()


def _shards(
    component: str, module: nn.Module, owners: Mapping[str, tuple[Source, str]]
) -> list[dict[str, tuple[Source, str]]]:
    """Tensors of a component in lots of about `SHARD_BYTES`, in the order of the files they come from."""
    order = {target: place for place, target in enumerate(owners)}
    shards: list[dict[str, tuple[Source, str]]] = [{}]
    size = 0
    for name in sorted(module.state_dict(), key=lambda name: order[f"{component}.{name}"]):
        owner = owners[f"{component}.{name}"]
        count = stored_bytes([owner])
        if shards[-1] and size + count > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = owner
        size += count
    return shards


def main(argv: Sequence[str]) -> int:
    """Converts with a progress bar; 0 if it succeeded, 2 for a mistake of the caller or a fault in the files."""
    parser = argparse.ArgumentParser(prog="python -m engine convert", description=__doc__)
    parser.add_argument("source", metavar="DIR", help="folder of the published weights, or a hub id to download")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--md5", action="store_true", help="compare a folder's files with the published md5 first")
    arguments = parser.parse_args(argv)
    try:
        folder = fetch(arguments.source)
        if arguments.md5:
            verify(folder, CHECKSUMS)
        with tqdm(unit="B", unit_scale=True, desc=arguments.out.name) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            convert(folder, arguments.out, preset("landiff"), show)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"convert: {error}\n")
        return 2
    return 0
