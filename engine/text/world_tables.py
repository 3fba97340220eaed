"""Words, colours, places and maps of the drawn world, as `engine/data/world.toml` has them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

TABLES: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "data/world.toml").read_text(encoding="utf-8"))
