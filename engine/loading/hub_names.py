"""What a hub calls folders and files: its cache's folders of snapshots, and files of one number format."""

from __future__ import annotations

from pathlib import Path

VARIANTS = ("fp32", "bf16", "fp16")  # number formats in file names, most exact first
_MAIN = "refs/main"  # file of a cached repository that names its newest snapshot


def snapshot_of(folder: Path) -> Path:
    """The folder of files that a folder of a hub's cache stands for; any other folder is returned as it is.

    Taken are a cache with one model, the cached model (`models--OWNER--NAME`), and its snapshot.

    Raises:
        ValueError: if it holds no model or snapshot, or several and does not say which.
    """
    for cache in (folder, folder / "hub"):
        models = sorted(cache.glob("models--*"))
        if len(models) > 1:
            names = ", ".join(str(model) for model in models)
            raise ValueError(f"{folder} is a hub's cache of several models: give one of {names}")
        if models:
            return snapshot_of(models[0])
    if not (folder / "snapshots").is_dir():
        if folder.name.startswith("models--") and folder.is_dir():
            raise ValueError(f"{folder} holds no snapshot, its download was not finished: download it again")
        return folder
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if (folder / _MAIN).is_file():
        main = folder / "snapshots" / (folder / _MAIN).read_text(encoding="utf-8", errors="replace").strip()
        snapshots = [path for path in snapshots if path == main] or snapshots
    if len(snapshots) != 1:
        names = ", ".join(str(path) for path in snapshots)
        cure = f"give one of {names}" if snapshots else "download it again"
        raise ValueError(f"{folder} is a hub's cache with {len(snapshots)} snapshots: {cure}")
    return snapshots[0]


def variant_of(path: Path) -> Path:
    """The file, or where it is missing the most exact of its number formats, such as `model.fp16.safetensors`."""
    named = (path.with_name(f"{path.stem}.{variant}{path.suffix}") for variant in VARIANTS)
    return next((other for other in (path, *named) if other.is_file()), path)
