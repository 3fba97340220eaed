"""Weights from a folder or a hub: presence and checksums of the published files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from engine.loading.hub_names import snapshot_of
from engine.loading.published_files import RENDERER_TEXT

HUB_ID = "yinaoxiong/LanDiff"
_BLOCK_BYTES = 1 << 22
_NOTE = ".landiff-live-md5.json"
_TRANSFORMER = "CogVideoX-2b-sat/transformer"

CHECKSUMS: Mapping[str, str] = {
    f"{RENDERER_TEXT}/added_tokens.json": "abe4fe2e108e8ed9432b843545238e53",
    f"{RENDERER_TEXT}/config.json": "874a573dae8c4f440916bab515dc0606",
    f"{RENDERER_TEXT}/model-00001-of-00002.safetensors": "221271c19cda66748bba20871b37d0e9",
    f"{RENDERER_TEXT}/model-00002-of-00002.safetensors": "64fc13b5063d462a73c000b54f1be785",
    f"{RENDERER_TEXT}/model.safetensors.index.json": "ebfc181cf184f4dc9cfffebaeae24d06",
    f"{RENDERER_TEXT}/special_tokens_map.json": "9583322ae544dfbdb0001350ab4c3fd9",
    f"{RENDERER_TEXT}/spiece.model": "9d15ef55d09d5a425ceb63fa31f7cae3",
    f"{RENDERER_TEXT}/tokenizer_config.json": "ae93f8b5fb04998524bc84b3c517b05d",
    f"{_TRANSFORMER}/1000/mp_rank_00_model_states.pt": "0c5f18a7b46ab52bae4ffec8a0195e59",
    f"{_TRANSFORMER}/latest": "ad865d2f63b9feb2552c220385fbb7e3",
    "CogVideoX-2b-sat/vae/3d-vae.pt": "e8be4352ababa00ebab19501d2e932bc",
    "diffusion/1/mp_rank_00_model_states.pt": "f91f8e8eec665115061866529d1ea735",
    "diffusion/latest": "c4ca4238a0b923820dcc509a6f75849b",
    "llm/model.safetensors": "db87f2939b0e0a0f4bc74ac8a04ce920",
    "tokenizer/model.safetensors": "a8b4ed9d4061759ea4314780898767e0",
}
"""md5 of every file of the release (REFERENCE 5.1), for finding transfer errors; no protection against forgery."""


def fetch(source: str) -> Path:
    """The folder that a folder's path or a hub id stands for; a hub is downloaded, with progress, and checked.

    Raises:
        ValueError: if it is neither, cannot be downloaded, or a file is not the published one; likewise as
            `snapshot_of` does.
    """
    folder = Path(source)
    if folder.is_dir():
        return snapshot_of(folder)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise ValueError(f"{source!r} is neither a folder nor a hub id such as {HUB_ID}")
    # Slow to import, and not needed for a folder.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, allow_patterns=list(CHECKSUMS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{source} could not be downloaded ({error}): check the name and the network, or give a folder"
        ) from error
    verify_once(folder, CHECKSUMS)
    return folder


def verify_once(folder: Path, checksums: Mapping[str, str]) -> None:
    """`verify`, unless it has passed before and no file was changed since; the folder keeps a note of that.

    Raises:
        ValueError: as `verify` does.
    """
    present = {name: (folder / name).stat() for name in checksums if (folder / name).is_file()}
    state = json.dumps({name: [checksums[name], stat.st_size, stat.st_mtime_ns] for name, stat in present.items()})
    note = folder / _NOTE
    if len(present) == len(checksums) and note.is_file() and note.read_text(encoding="utf-8") == state:
        return
    verify(folder, checksums)
    # A cache that cannot be written is checked each time.
    with suppress(OSError):
        note.write_text(state, encoding="utf-8")


def verify(folder: Path, checksums: Mapping[str, str]) -> None:
    """Compares every file with its md5, showing progress.

    Raises:
        ValueError: naming every file that is missing or differs.
    """
    faults = [f"{folder / name} is missing" for name in checksums if not (folder / name).is_file()]
    present = [name for name in checksums if (folder / name).is_file()]
    total = sum((folder / name).stat().st_size for name in present)
    with tqdm(total=total, unit="B", unit_scale=True, desc="checking md5", disable=None) as bar:
        for name in present:
            digest = hashlib.md5(usedforsecurity=False)
            with (folder / name).open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    bar.update(len(block))
            if digest.hexdigest() != checksums[name]:
                faults.append(f"{folder / name} has md5 {digest.hexdigest()}, the published one {checksums[name]}")
    if faults:
        raise ValueError("files are missing or damaged; delete them and download again:\n" + "\n".join(faults))
