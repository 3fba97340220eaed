"""The weights that are shipped: they load, they follow the prompt, and their seams do not show."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import preset
from engine.evaluation.pictures import evaluate_pictures, pictures_markdown, steepness
from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from engine.loading.model import Model, load
from engine.loading.options import pick_dtype
from engine.loading.weights import SHIPPED, load_component
from engine.semantic.theia import Theia
from engine.training.world import drawing, judge
from engine.training.world.captions import Label

FOLDER = SHIPPED / "mini"
FILE_BYTES, ALL_BYTES = 15 << 20, 60 << 20
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model() -> Model:
    return load(preset("mini"), FOLDER, CPU, pick_dtype(CPU))


@pytest.fixture(scope="module")
def theia() -> Theia:
    made = Theia(preset("mini").theia).eval()
    load_component(FOLDER, "theia", made)
    return made


def video(model: Model, prompt: str, frames: int, *changes: Change, seed: int = 1) -> torch.Tensor:
    """uint8 [F, 3, H, W]"""
    generator = Generator(model)
    return judge.to_rgb(
        np.concatenate(
            [batch.i420 for batch in generate_frames(generator, generator.open(prompt, seed), frames, changes)]
        )
    )


def test_weights_are_small_enough_to_ship() -> None:
    """Each file is at most 15 MiB, all together at most 60 MiB."""
    sizes = [path.stat().st_size for path in Path(FOLDER).rglob("*") if path.is_file()]
    assert max(sizes) <= FILE_BYTES and sum(sizes) <= ALL_BYTES


def test_the_video_shows_what_was_asked_for(model: Model, theia: Theia) -> None:
    """Scene and colour of most of four prompts are seen by the judge."""
    asked = {
        "a red ball moves slowly to the right over green hills": Label("ball", "red", "hills", "right", "slow"),
        "a yellow car drives to the left through the desert": Label("car", "yellow", "desert", "left", "medium"),
        "a white sailboat stands still on the sea": Label("sailboat", "white", "sea", "still", "slow"),
        "a purple fish swims up at night": Label("fish", "purple", "night", "up", "medium"),
    }
    rows = [judge.judge(theia, video(model, prompt, 49), label) for prompt, label in asked.items()]
    assert sum(row["scene"] for row in rows) >= 3
    assert sum(row["colour"] for row in rows) >= 3


def test_a_new_prompt_changes_the_scene(model: Model, theia: Theia) -> None:
    """In most of four videos the new scene is on air two chunks after the change, and in none before it."""
    label = Label("ball", "red", "night", "still", "slow")
    after = []
    for seed in range(4):
        frames = video(model, "a red ball on the sea", 121, Change(26, "a red ball at night"), seed=seed)
        assert not judge.judge(theia, frames[:25], label)["scene"]
        after.append(judge.judge(theia, frames[72:], label)["scene"])
    assert sum(after) >= 3


def test_seams_do_not_show(model: Model) -> None:
    """The picture changes no more at a chunk's first frame than inside chunks (1.25 is this preset's bar)."""
    frames = video(model, "a blue sailboat sails slowly to the right on the sea", 25 + 24 * 8)
    change = judge.change_of_frames(frames)
    at_seams = change[24::24]
    inside = torch.cat([change[:24], *[part[1:] for part in change[24:].split(24)]])
    assert at_seams.mean() / inside.mean() <= 1.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_stay_as_sharp_as_they_were(dtype: torch.dtype) -> None:
    """After twenty seconds nothing has piled up, whatever type the processor computes in."""
    if dtype not in (torch.float32, pick_dtype(CPU)):
        pytest.skip(f"this processor only emulates {dtype}, which takes minutes")
    steady = load(preset("mini"), FOLDER, CPU, dtype)
    frames = video(steady, "one blue car stays in place under the night sky", 25 + 24 * 6, seed=4)
    assert judge.sharpness(frames[-24:]) / judge.sharpness(frames[:25]) == pytest.approx(1, abs=0.15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes Triton")
def test_mini_runs_without_heavy_libraries() -> None:
    """Neither transformers nor torch's compiler nor Triton is loaded, from the start to the second chunk."""
    code = """
import sys, torch
from engine.config import preset
from engine.live import process
from engine.live.offline import generate_frames
from engine.loading.model import load
from engine.loading.weights import SHIPPED
generator = process.Generator(load(preset("mini"), SHIPPED / "mini", torch.device("cpu"), torch.float32))
list(generate_frames(generator, generator.open("a red ball", 0, 1), 49))
print(sorted({"transformers", "triton", "torch._dynamo", "sympy", "diffusers", "sentencepiece"} & set(sys.modules)))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "LANDIFF"))}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout == "[]\n", found.stdout


def test_large_pictures_are_sharper_and_nearer_than_enlarged_ones(theia: Theia) -> None:
    """Than small ones enlarged by Lanczos and shown twice; and generated ones show what was asked for."""
    found = evaluate_pictures(load(preset("mini", "large"), FOLDER, CPU, pick_dtype(CPU)), theia, 2, seed=0)
    for part in ("picture", "subject_box"):
        assert found["sharpness_enlarged"][part]["ratio"] < found["sharpness"][part]["ratio"] < 1.1
        assert found["psnr"][part]["db"] > found["psnr_enlarged"][part]["db"]
    assert found["words"]["share"] > 0.5
    assert "psnr subject box" in pictures_markdown(found)


def test_details_of_large_pictures_settle_while_a_place_stands() -> None:
    """Each latent sees what the one before added: over 20 s of the same latent neither does it grow nor fade."""
    model = load(preset("mini", "large"), FOLDER, CPU, pick_dtype(CPU))
    label = Label("car", "red", "hills", "still", "slow")
    numbers = torch.arange(model.config.first_chunk_frames)[None] / model.config.scale
    true = drawing.draw(drawing.sample([label], random.Random(0)), numbers, model.config.scale)
    with model.computing():
        latents = model.vae.encode(true.float() / 127.5 - 1, model.vae.new_state())
        state = model.vae.new_state()
        model.vae.decode(latents, state)
        ends = [(model.vae.decode(latents[:, -1:], state)[0, -1].float() + 1) * 127.5 for _ in range(40)]
    assert (ends[-1] - ends[-2]).abs().mean() < 0.05
    first, last = steepness(torch.stack([ends[0], ends[-1]]).clamp(0, 255)).tolist()
    assert last == pytest.approx(first, rel=0.03)
