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
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.published.check_reference import CHECKS, check, check_file
from engine.published.reference_case import load_case

GOLDEN = Path(__file__).parent / "data" / "golden"
ROOT = Path(__file__).parents[1]


def run(folder: Path, *more: str, **switches: str) -> tuple[int, list[str], str]:
    """Status, lines and errors of the command in a process of its own: how a processor rounds, and what computes, is
    settled once a process, in an environment that others must not inherit."""
    program = f"import sys; from engine.reference.check_reference import main; sys.exit(main({[str(folder), *more]!r}))"
    command, environment = [sys.executable, "-c", program], os.environ | switches
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def change(folder: Path, name: str, edit: Callable[[dict[str, Any], dict[str, Tensor]], None], new: str) -> None:
    """A golden case, edited, as a case of another name."""
    facts, tensors = json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")
    edit(facts, tensors)
    (folder / f"{new}.json").write_text(json.dumps(facts))
    save_file(tensors, folder / f"{new}.safetensors")


def test_every_golden_passes() -> None:
    """One line a case with its error, the count last, status 0; together they take less room than 25 MB."""
    status, lines, _ = run(GOLDEN)
    cases = sorted(path.stem for path in GOLDEN.glob("*.json"))
    assert lines[-1] == f"{len(cases)} passed, 0 failed", lines
    assert status == 0
    assert [line.split(":")[0] for line in lines[:-1]] == [f"ok     {name}" for name in cases]
    assert all(" error " in line for line in lines[:-1])
    assert {json.loads((GOLDEN / f"{name}.json").read_text())["case"] for name in cases} == set(CHECKS)
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 25e6


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
    for name in ("dit_b", "tokenizer_b"):
        for ending in ("json", "safetensors"):
            shutil.copy(GOLDEN / f"{name}.{ending}", tmp_path)
    status, lines, _ = run(tmp_path, **switches)
    assert (status, lines[-1]) == (0, "2 passed, 0 failed"), lines


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernels", ["triton", "reference"])
def test_every_golden_passes_on_cuda(kernels: str) -> None:
    """In float32 the published numbers come out on a GPU too, fused kernels or not."""
    status, lines, _ = run(GOLDEN, "--device", "cuda", LANDIFF_KERNELS=kernels)
    assert status == 0, lines


def moved(name: str, by: float = 1e-4) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def edit(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[0] += by * tensors[name].abs().max()

    return edit


def scaled_weight(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def edit(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["sd/" + name] *= 1.01

    return edit


def one_scale(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    moved("n50/guidance_scale_num_steps50")(facts, tensors)
    # Masks of full size take most of a table case's time.
    for name in [name for name in tensors if name.startswith("mask/")]:
        del tensors[name]


def test_wrong_cases_fail_and_the_others_do_not(tmp_path: Path) -> None:
    """Each case that is wrong in one place fails with the place named; a good one in a subfolder passes; status 1."""
    good = tmp_path / "deep"
    good.mkdir()
    for ending in ("json", "safetensors"):
        shutil.copy(GOLDEN / f"theia_a.{ending}", good / f"any name.{ending}")
    change(tmp_path, "vae_b", moved("decoded_sliced"), "w1")
    change(tmp_path, "tokenizer_b", lambda facts, tensors: tensors["group/indices"].view(-1)[:2].add_(1), "w2")
    change(tmp_path, "lm_b", lambda facts, tensors: tensors["sample/sampled_cfg/codes"].view(-1)[3:4].add_(1), "w3")
    change(tmp_path, "sampler_b", scaled_weight("control_model.diffusion_model.mixins.patch_embed.proj.bias"), "w4")
    change(tmp_path, "dit_b", lambda facts, tensors: tensors.update(surprise=torch.zeros(1)), "w5")
    change(tmp_path, "dit_b", lambda facts, tensors: facts.update(case="novel"), "w6")
    change(tmp_path, "condition_b", lambda facts, tensors: tensors.pop("sd/conv_out.bias"), "w7")
    change(tmp_path, "fullscale_tables", one_scale, "w8")
    (tmp_path / "w9.json").write_text("{")
    save_file({"x": torch.zeros(1)}, tmp_path / "x1.safetensors")
    status, lines, _ = run(tmp_path)
    assert (status, lines[-1]) == (1, "1 passed, 10 failed"), lines
    assert lines[0].startswith("ok     any name: theia_extractor")
    parts = [
        "decoded_sliced: error 1.0", "group/indices: 2 entries", "sample/sampled_cfg/codes: 1 entries",
        "denoised_after_cfg", "no check knows surprise", "kind 'novel' is unknown", "project.bias", "guidance_scale",
        "JSONDecodeError", "x1.json is missing",
    ]  # fmt: skip
    for line, part in zip(lines[1:-1], parts, strict=True):
        assert line.startswith("FAILED") and part in line, line


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Results that the json lists and the file lacks fail a case, as do missing inputs, weights and sizes."""
    gone = ["out_with_control", "x", "sd/main_model.diffusion_model.time_embed.0.bias", "config"]

    def without(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
        def edit(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
            del (facts if name in facts else tensors)[name]

        return edit

    for number, name in enumerate(gone):
        change(tmp_path, "dit_b", without(name), f"m{number}")
    shutil.copy(GOLDEN / "dit_b.json", tmp_path / "m4.json")
    (tmp_path / "m4.safetensors").write_bytes((GOLDEN / "dit_b.safetensors").read_bytes()[:1000])
    texts = [str(check_file(path, "cpu")) for path in sorted(tmp_path.glob("*.json"))]
    parts = ["not there: out_with_control", "no tensor 'x'", "time.0.bias", "'config'", "SafetensorError"]
    for text, part in zip(texts, parts, strict=True):
        assert text.startswith("FAILED") and part in text, text


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

    change(tmp_path, "vae_a", shorter, "vae")
    change(tmp_path, "sampler_b", renamed, "sampler")
    for name in ("vae", "sampler"):
        verdict = check(load_case(tmp_path / f"{name}.json"))
        assert verdict.passed, verdict


def test_folders_without_cases_fail(tmp_path: Path) -> None:
    """A missing folder and an empty one are errors, and say what is looked for."""
    status, _, errors = run(tmp_path / "none")
    assert status == 2 and "is no folder" in errors
    status, lines, errors = run(tmp_path)
    assert status == 1 and "holds no golden case" in errors and lines == ["0 passed, 0 failed"]
