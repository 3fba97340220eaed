"""`check-reference` on the goldens, on cases made wrong, and on folders that hold none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import FOLDER
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.published.check_reference import check_cases
from engine.published.checks import CHECKS

ROOT = Path(__file__).parents[1]
Edit = Callable[[dict[str, Any], dict[str, Tensor]], object]  # of the json and the tensors


def run(folder: Path, *more: str, **switches: str) -> tuple[int, list[str], str]:
    """Status, lines and errors of the command in a process of its own: how a processor rounds, and what computes, is
    settled once a process, in an environment that others must not inherit."""
    command, environment = [sys.executable, "-m", "engine", "check-reference", folder, *more], os.environ | switches
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def copy(folder: Path, *names: str) -> None:
    for name in names:
        for ending in ("json", "safetensors"):
            shutil.copy(FOLDER / f"{name}.{ending}", folder)


def verdict(folder: Path, name: str, edit: Edit) -> tuple[bool, str]:
    """Whether an edited golden case passes, and the line about it."""
    facts, tensors = json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")
    edit(facts, tensors)
    (folder / "case.json").write_text(json.dumps(facts))
    save_file(tensors, folder / "case.safetensors")
    (only,) = check_cases(folder, "cpu")
    return only


def test_every_golden_passes() -> None:
    """One line a case with its error, the count last, status 0; together they take less room than 25 MB."""
    status, lines, _ = run(FOLDER)
    cases = sorted(path.stem for path in FOLDER.glob("*.json"))
    assert lines[-1] == f"{len(cases)} passed, 0 failed", lines
    assert status == 0
    assert [line.split(":")[0] for line in lines[:-1]] == [f"ok     {name}" for name in cases]
    assert all(" error " in line for line in lines[:-1])
    assert {json.loads((FOLDER / f"{name}.json").read_text())["case"] for name in cases} == set(CHECKS)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25e6


@pytest.mark.parametrize(
    "switches",
    [
        {"LANDIFF_KERNELS": "triton", "TRITON_INTERPRET": "1", "LANDIFF_GRAPHS": "on"},
        {"LANDIFF_KERNELS": "reference", "LANDIFF_GRAPHS": "off"},
    ],
    ids=["on", "off"],
)
def test_goldens_pass_with_kernels_and_graphs_on_and_off(switches: dict[str, str], tmp_path: Path) -> None:
    """The cases that meet the most kernels in the least time pass whatever computes them."""
    copy(tmp_path, "dit_b", "tokenizer_b")
    status, lines, _ = run(tmp_path, **switches)
    assert (status, lines[-1]) == (0, "2 passed, 0 failed"), lines


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernels", ["triton", "reference"])
def test_every_golden_passes_on_cuda(kernels: str) -> None:
    """In float32 the published numbers come out on a GPU too, fused kernels or not."""
    status, lines, _ = run(FOLDER, "--device", "cuda", LANDIFF_KERNELS=kernels)
    assert status == 0, lines


def moved(name: str) -> Edit:
    """Adds a ten thousandth of its largest number to one entry."""
    return lambda facts, tensors: tensors[name].view(-1)[0].add_(1e-4 * tensors[name].abs().max())


def scaled_bias(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["sd/control_model.diffusion_model.mixins.patch_embed.proj.bias"] *= 1.01


def one_scale(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    moved("n50/guidance_scale_num_steps50")(facts, tensors)
    # Masks of full size take most of a table case's time.
    for name in [name for name in tensors if name.startswith("mask/")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        ("vae_b", moved("decoded_sliced"), "decoded_sliced: error 1.0"),
        ("tokenizer_b", lambda _, tensors: tensors["group/indices"].view(-1)[:2].add_(1), "group/indices: 2 entries"),
        ("lm_b", lambda _, tensors: tensors["sample/sampled_cfg/codes"].view(-1)[3:4].add_(1), "codes: 1 entries"),
        ("sampler_b", scaled_bias, "denoised_after_cfg"),
        ("fullscale_tables", one_scale, "guidance_scale"),
        ("dit_b", lambda _, tensors: tensors.update(surprise=torch.zeros(1)), "no check knows surprise"),
        ("dit_b", lambda facts, _: facts.update(case="novel"), "kind 'novel' is unknown"),
        ("dit_b", lambda _, tensors: tensors.pop("out_with_control"), "not there: out_with_control"),
        ("dit_b", lambda _, tensors: tensors.pop("x"), "no tensor 'x'"),
        ("dit_b", lambda facts, _: facts.pop("config"), "'config'"),
        ("condition_b", lambda _, tensors: tensors.pop("sd/conv_out.bias"), "project.bias"),
    ],
)
def test_a_wrong_case_fails(tmp_path: Path, name: str, edit: Edit, said: str) -> None:
    """What is wrong, surplus or missing is named: results, inputs, weights, sizes, kind."""
    passed, line = verdict(tmp_path, name, edit)
    assert not passed and line.startswith("FAILED") and said in line


def test_broken_files_hide_no_others(tmp_path: Path) -> None:
    """A good case in a subfolder passes beside a json and tensors cut short and a json that is missing; status 1."""
    (tmp_path / "deep").mkdir()
    copy(tmp_path / "deep", "theia_a")
    (tmp_path / "w1.json").write_text("{")
    shutil.copy(FOLDER / "dit_b.json", tmp_path / "w2.json")
    (tmp_path / "w2.safetensors").write_bytes((FOLDER / "dit_b.safetensors").read_bytes()[:1000])
    save_file({"x": torch.zeros(1)}, tmp_path / "w3.safetensors")
    status, lines, _ = run(tmp_path)
    assert (status, lines[-1]) == (1, "1 passed, 3 failed")
    parts = ["ok     theia_a: theia_extractor", "JSON", "SafetensorError", "FileNotFoundError"]
    assert all(part in line for line, part in zip(lines[:-1], parts, strict=True))


def test_other_geometry_is_followed(tmp_path: Path) -> None:
    """Sizes, offsets and run names are taken from the case: a shorter VAE run and a renamed sampler run pass."""

    def shorter(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        facts["slices"], facts["config"]["T"] = [[0, 3]], 3
        tensors["latent"] = tensors["latent"][:, :, :3].contiguous()
        tensors["decoded_sliced"] = tensors["decoded_sliced"][:, :, :9].contiguous()
        del tensors["decoded_single_call"], facts["tensors"]

    def renamed(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        facts["runs"] = {"other": facts["runs"]["prefix7"]}
        del facts["tensors"]
        for name in [name for name in tensors if name.startswith(("plain8/", "prefix7/"))]:
            value = tensors.pop(name)
            if name.startswith("prefix7/"):
                tensors[name.replace("prefix7", "other")] = value

    for name, edit in (("vae_a", shorter), ("sampler_b", renamed)):
        passed, line = verdict(tmp_path, name, edit)
        assert passed, line


def test_folders_without_cases_fail(tmp_path: Path) -> None:
    """A missing folder and an empty one are errors, and say what is looked for."""
    status, _, errors = run(tmp_path / "none")
    assert status == 2 and "is no folder" in errors
    status, lines, errors = run(tmp_path)
    assert status == 1 and "holds no golden case" in errors and lines == ["0 passed, 0 failed"]
