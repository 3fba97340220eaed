"""`python -m engine evaluate --prompts F.jsonl`: judges videos, or only their plans, of prompts with labels.

A line of the file is a JSON object: `prompt`, `group`, and a word for each field of FIELDS that the prompt states; null
or left out stands for what it leaves open, which is not judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engine.bench.report import table
from engine.live.channel_state import ChannelState, Place
from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from engine.semantic import reading
from engine.semantic.theia import Theia
from engine.text.asked import SPOKEN, SPOKEN_FIELDS, WORDS
from engine.training.world import judge
from engine.wire.prompt import check_prompt

# Fields of a line, as they are said outside, and those of a reading.
FIELDS = {said: name for name, said in SPOKEN_FIELDS.items()}
PLAIN, CHUNKS = "", 2  # the group of lines that name none; chunks of video that are judged


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """A prompt, its group, and the words that it states, by the fields of a reading."""

    prompt: str
    group: str
    stated: dict[str, str]

    @property
    def judged(self) -> dict[str, str]:
        """Stated words that can be seen: a speed only with a direction that moves."""
        unseen = self.stated.get("direction") in (None, "still")
        return {name: word for name, word in self.stated.items() if not (name == "speed" and unseen)}


def read_prompts(path: Path) -> list[LabelledPrompt]:
    """All lines of a file. Raises ValueError naming the first line that is not as it should be, and how it is cured."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give a file of JSON lines in UTF-8") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_labelled(json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path} has no prompts: give one JSON object a line")
    return found


def _labelled(line: Any) -> LabelledPrompt:
    if not isinstance(line, dict) or not isinstance(line.get("prompt"), str):
        raise ValueError("a JSON object with a text `prompt` is needed")
    if unknown := sorted(line.keys() - {"prompt", "group", *FIELDS}):
        raise ValueError(f"{', '.join(unknown)} is no field: there are prompt, group, {', '.join(FIELDS)}")
    stated = {}
    for said, name in FIELDS.items():
        if (value := line.get(said)) is not None:
            allowed = {SPOKEN.get((name, word), word): word for word in WORDS[name]}
            if value not in allowed:
                raise ValueError(f"{said} {value!r} is not one of {', '.join(allowed)}: leave it out if it is open")
            stated[name] = allowed[value]
    return LabelledPrompt(check_prompt(line["prompt"]), str(line.get("group") or PLAIN), stated)


def seen_in_pictures(generator: Generator, theia: Theia, prompts: Sequence[str], seed: int) -> reading.Reading:
    """What the first two chunks show, or with two prompts the second chunk after the change."""
    config = generator.model.config
    begun = config.first_chunk_frames + (CHUNKS - 1) * config.chunk_frames
    changes = [Change(begun, prompt) for prompt in prompts[1:]]
    frames = begun + CHUNKS * config.chunk_frames * len(changes)
    batches = generate_frames(generator, generator.open(prompts[0], seed), frames, changes)
    video = torch.cat([judge.to_rgb(batch.i420) for batch in batches])
    clip = video[-config.chunk_frames :] if changes else video
    return reading.read(judge.features(theia, clip))[0]


def seen_in_plan(generator: Generator, prompts: Sequence[str], seed: int) -> reading.Reading:
    """The same of the plan alone, which says what will be rendered."""
    config, state = generator.model.config, generator.open(prompts[0], seed)
    start, end = 0, config.first_chunk_length + (CHUNKS - 1) * config.chunk_length
    write_plan(generator, state, end)
    for prompt in prompts[1:]:
        generator.change(state, prompt, Place(latent=end))
        start, end = end + (CHUNKS - 1) * config.chunk_length, end + CHUNKS * config.chunk_length
        write_plan(generator, state, end)
    return reading.read(generator.planned_features(state, start, end).features)[0]


def write_plan(generator: Generator, state: ChannelState, end: int) -> None:
    """Plans up to frame `end`."""
    while generator.planned(state) < end:
        generator.plan(state)


def judge_prompts(
    generator: Generator, theia: Theia | None, prompts: Sequence[LabelledPrompt], seed: int, after_change: bool
) -> dict[str, Any]:
    """Figures of a set; of plans without a `theia`. With `after_change` each prompt comes in the video of the one
    before it, and its second chunk is judged."""
    rows = []
    for number, one in enumerate(tqdm(prompts, unit="prompt")):
        texts = [prompts[number - 1].prompt, one.prompt] if after_change else [one.prompt]
        if theia is None:
            seen = seen_in_plan(generator, texts, seed + number)
        else:
            seen = seen_in_pictures(generator, theia, texts, seed + number)
        understood = generator.model.text.understood(one.prompt, seed + number)
        rows.append({
            "prompt": one.prompt,
            "group": one.group,
            "right": {name: seen[name] == word for name, word in one.judged.items()},
            "seen": seen,
            "understood": None if understood is None else asdict(understood),
        })  # fmt: skip
    return figures(rows)


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of rows in which every stated word is right, and of words, in all, by group and by field."""
    right = [row["right"] for row in rows if row["right"]]
    if not right:
        raise ValueError("no prompt states a word that can be judged: give labels")
    groups = {name: [row["right"] for row in rows if row["group"] == name and row["right"]] for name in _groups(rows)}
    every, words = _all_right(right), judge.share([word for row in right for word in row.values()])
    fields = {said: [row[name] for row in right if name in row] for said, name in FIELDS.items()}
    return {
        "all_right": every["share"],
        "words_right": words["share"],
        "all_right_figure": every,
        "words_right_figure": words,
        "groups": {
            name: {"all_right": _all_right(part), "words_right": judge.share([w for row in part for w in row.values()])}
            for name, part in groups.items()
            if part
        },
        "fields": {said: judge.share(part) for said, part in fields.items() if part},
        "prompts": list(rows),
    }


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield from dict.fromkeys(row["group"] for row in rows)


def _all_right(rows: Sequence[dict[str, bool]]) -> judge.Figure:
    return judge.share([all(row.values()) for row in rows])


def prompts_markdown(found: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = [
        ("every stated word right", _told(found["all_right_figure"])),
        ("words right", _told(found["words_right_figure"])),
    ]
    for name, part in found["groups"].items():
        if name:
            rows.append(
                (f"group {name}: every word, words", f"{_told(part['all_right'])}, {_told(part['words_right'])}")
            )
    rows += [(f"{name.replace('_', ' ')} right", _told(one)) for name, one in found["fields"].items()]
    return table(["figure", "measured"], rows) + "\n"


def _told(figure: judge.Figure) -> str:
    return f"{figure['share']:.3f} ± {figure['half_width_95']:.3f} (n = {figure['n']})"
