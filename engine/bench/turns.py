"""One commit's turns of a race against another: a program of its own, run inside that commit's tree.

It imports `engine` of the folder it is started in, which may be as old as version 0.1, and nothing else of this
project. It reads a word a line, "plan", "chunk" or "stop", does that work, and answers with a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

CAPTION, SEED = "a red car drives slowly to the right through the desert", 0
LEAD_IN = 3  # chunks before the first turn, after which every chunk has its full context
PLANNED_FRAMES = 13  # of a turn of planning: as many as a GOP has


class Turns:
    """The work of a race, by the words of this commit or of those before version 0.2."""

    def __init__(self, name: str, steps: int | None) -> None:
        """Loads the shipped weights of preset `name`. Raises ImportError if the tree has neither layout."""
        try:
            self._load(name, steps)
        except ImportError:
            self._load_first(name, steps)
        for _ in range(LEAD_IN):
            self.chunk()
        self.plan()

    def _load(self, name: str, steps: int | None) -> None:
        from engine.config import preset
        from engine.live.generator import Generator
        from engine.live.offline import next_chunk
        from engine.loading.model import load
        from engine.loading.options import pick_device, pick_dtype, use_cores
        from engine.loading.weights import SHIPPED

        use_cores()
        config, device = preset(name), pick_device("auto")
        model = load(config, SHIPPED / name, device, pick_dtype(device))
        self._config = replace(config, steps=steps or config.steps)
        generator: Any = Generator(replace(model, config=self._config))
        self._ends: Callable[[Any], int] = generator.planned
        self._units: Callable[[Any], Iterator[Any]] = lambda state: next_chunk(generator, state)
        self._generator, self._device = generator, device
        self._planned, self._made = (generator.open(CAPTION, SEED) for _ in range(2))
        self.tokens = config.tokenizer.gop_tokens

    def _load_first(self, name: str, steps: int | None) -> None:
        from importlib import import_module

        import torch

        config_module, model, generator_module = map(
            import_module, ("engine.config", "engine.model", "engine.generator")
        )
        model.use_cores()
        config, device = config_module.preset(name), model.pick_device("auto")
        shipped = import_module("engine.weights").SHIPPED
        dtype = model.pick_dtype(device)
        if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
            # Where ATEN_CPU_CAPABILITY says so, the processor may have bfloat16 instructions all the same, which is all
            # that the first layout asks: torch would emulate them.
            dtype = torch.float32
        made = model.load(config, shipped / name, device, dtype)
        self._config = config
        generator = generator_module.Generator(made, steps)

        def chunk(state: Any) -> Iterator[Any]:
            while generator.needs_plan(state):
                generator.plan(state)
            yield from generator.hop(state)

        self._ends = lambda state: int(generator.ahead(state)) + int(state.latent)
        self._units = chunk
        self._generator, self._device = generator, device
        self._planned, self._made = (generator.open(CAPTION, SEED) for _ in range(2))
        self.tokens = config.tokenizer.group_tokens

    def plan(self) -> float:
        """Milliseconds to plan as many frames as a GOP has, context included."""
        begin_s, end = self._now_s(), self._ends(self._planned) + PLANNED_FRAMES
        while self._ends(self._planned) < end:
            self._generator.plan(self._planned)
        return 1000 * (self._now_s() - begin_s)

    def chunk(self) -> float:
        """Milliseconds of a whole chunk as it streams: planned, rendered and decoded."""
        begin_s = self._now_s()
        for unit in self._units(self._made):
            unit.mark.wait()
        return 1000 * (self._now_s() - begin_s)

    def _now_s(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


def main(name: str, steps: str) -> None:
    """Answers until told to stop or until nobody asks any more."""
    turns = Turns(name, int(steps) or None)
    sys.stdout.write(json.dumps({"tokens": turns.tokens}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        word = line.strip()
        if word == "stop":
            return
        sys.stdout.write(json.dumps({word: turns.plan() if word == "plan" else turns.chunk()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
