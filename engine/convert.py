"""`convert DIR OUT`: published weights to our own layout, sharded safetensors and one `config.json`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from engine.download import fetch
from engine.landiff import DESCRIPTION, FORMAT, LandiffConfig, build, open_folder
from engine.published import TEXT_FOLDER, shapes_of
from engine.tensor_files import Source, faults_of, is_finite

SHARD_BYTES = 1 << 30


def convert(
    folder: Path, out: Path, config: LandiffConfig, progress: Callable[[int], None] = lambda count: None
) -> None:
    """Writes the weights of a folder anew, as stored, tensor types unchanged; the host holds one shard at a time.

    Args:
        folder: as published, or in our own layout.
        out: folder to make; it must not exist or be empty.
        progress: told bytes written since the last call.

    Raises:
        ValueError: for any fault in the files, or if `out` holds something. Nothing is left in `out` then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: give a new folder")
    components = build(config)
    sources = open_folder(folder, components, config.name)
    faults = faults_of(sources, shapes_of(components))
    if faults:
        raise ValueError(f"{len(faults)} faults in the weights:\n" + "\n".join(faults))
    with _whole_or_nothing(out) as partial:
        for component, module in components.items():
            _write_component(partial, component, module, sources, progress)
        for text in (folder / TEXT_FOLDER, folder / "text"):
            if text.is_dir():
                shutil.copytree(text, partial / "text")
        description = {"format": FORMAT, "preset": config.name, "components": list(components)}
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, or vanishes."""
    partial = out.with_name(out.name + ".part")
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
    folder: Path, component: str, module: nn.Module, sources: list[Source], progress: Callable[[int], None]
) -> None:
    owners = {target: (source, key) for source in sources for target, key in source.targets().items()}
    written = []
    for number, shard in enumerate(_sharded(component, module, owners), start=1):
        written.append(folder / f"{component}-{number:05d}.part")
        save_file(shard, written[-1])
        progress(sum(tensor.nbytes for tensor in shard.values()))
    for number, path in enumerate(written, start=1):
        name = f"{component}-{number:05d}-of-{len(written):05d}" if len(written) > 1 else component
        path.rename(folder / f"{name}.safetensors")


def _sharded(
    component: str, module: nn.Module, owners: Mapping[str, tuple[Source, str]]
) -> Iterator[dict[str, Tensor]]:
    """Tensors of a component in lots of about `SHARD_BYTES`, in the order of the files they come from."""
    order = {target: place for place, target in enumerate(owners)}
    shard: dict[str, Tensor] = {}
    for name in sorted(module.state_dict(), key=lambda name: order[f"{component}.{name}"]):
        source, key = owners[f"{component}.{name}"]
        tensor = source.file.read(key)
        if not is_finite(tensor):
            raise ValueError(f"{source.file.path}: {key} holds NaN or infinite numbers")
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor.contiguous()
    yield shard


def main(argv: Sequence[str]) -> int:
    """Converts with a progress bar; 0 if it succeeded, 2 for a mistake of the caller or a fault in the files."""
    parser = argparse.ArgumentParser(prog="python -m engine convert", description=__doc__)
    parser.add_argument("source", metavar="DIR", help="folder of the published weights, or a hub id to download")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    arguments = parser.parse_args(argv)
    try:
        folder = fetch(arguments.source)
        with tqdm(unit="B", unit_scale=True, desc=arguments.out.name) as bar:
            convert(folder, arguments.out, LandiffConfig(), bar.update)
    except ValueError as error:
        sys.stderr.write(f"convert: {error}\n")
        return 2
    return 0
