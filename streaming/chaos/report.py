"""What a run found, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Flaw(NamedTuple):
    """Something that must not be."""

    kind: str  # "wrong" or "missing" frames, "answer", "leak"
    words: str


@dataclass(slots=True)
class Report:
    """Faults, what the viewer saw, and what must not be."""

    seed: int
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)  # how many of each kind
    seen: dict[str, float] = field(default_factory=dict)
    growth: dict[str, Any] = field(default_factory=dict)  # of server and engine; empty for a short life
    conditions: dict[str, Any] = field(default_factory=dict)
    timeline: list[tuple[float, str, int | None]] = field(default_factory=list)  # s, fault, number of the newest frame
    findings: list[Flaw] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "faults": self.faults,
            "timeline": self.timeline,
            "seen": self.seen,
            "growth": self.growth,
            "conditions": self.conditions,
            "findings": [finding._asdict() for finding in self.findings],
        }

    def text(self) -> str:
        """For a terminal."""
        rows = [f"seed {self.seed}, {self.seconds:.0f} s, {sum(self.faults.values())} faults"]
        rows += [f"  {count:4d}  {name}" for name, count in sorted(self.faults.items())]
        at_rest = {f"the {name} at rest": figures for name, figures in self.growth.items()}
        for title, figures in ({"seen": self.seen} | at_rest).items():
            plain = {name: value for name, value in figures.items() if isinstance(value, int | float)}
            if plain:
                rows += [title] + [f"  {value:8g}  {name.replace('_', ' ')}" for name, value in plain.items()]
        rows += ["nothing was wrong" if not self.findings else "WRONG"]
        rows += [f"  {finding.kind}: {finding.words}" for finding in self.findings]
        return "\n".join(rows) + "\n"
