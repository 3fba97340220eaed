"""The shape of the project: who imports whom, how long a module is, and that documents name what exists."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from transformers.utils import is_kernels_available

from streaming.engines.link import TRANSITIONS

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "kernels", "streaming")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted((ROOT / "streaming/page").glob("*.js"))
LONGEST = 300

# Rooms from the ground up: a module imports from its own room and from those above it in this list.
FLOORS = (
    "kernels",
    "engine",  # the package: `load` imports what it needs when it is called
    "engine.wire",
    "kernels.bench",  # a program: writes its figures as the others do
    "engine.runtime",
    "engine.text",
    "engine.semantic",
    "engine.perceptual",
    "engine.config",
    "engine.arguments",
    "engine.loading",
    "engine.ranks",
    "engine.live",
    "engine.published",
    "engine.video",
    "engine.training",
    "engine.bench",
    "engine.evaluation",
    "engine.__main__",
    "streaming",
    "streaming.errors",
    "streaming.media",
    "streaming.engines",
    "streaming.channels",
    "streaming.doctor",
    "streaming.http",
    "streaming.bench",
    "streaming.chaos",
    "server",
    "streaming.doctor.__main__",  # a program: takes the server's options
)

# Classes that share their name: each the usual word in two rooms that do not import each other.
SHARED_NAMES = {"Change", "Place"}

DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")})
PRESENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # which names what is gone
# Of another project, in a folder named as one of ours.
FOREIGN_PATHS = {"tests/asyncio/test_messages.py"}


def name_of(path: Path) -> str:
    """A module's dotted name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a module imports, at any depth in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(name: str) -> int:
    """Which floor a module, or a name in it, is on."""
    words = name.split(".")
    return max(FLOORS.index(room) for size in range(1, len(words) + 1) if (room := ".".join(words[:size])) in FLOORS)


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_fits_a_room(path: Path) -> None:
    """No module is longer than LONGEST lines."""
    assert len(path.read_text().splitlines()) <= LONGEST


def test_imports_go_downwards() -> None:
    """A module imports from its own floor and those below, `streaming` of the engine only `engine.wire`."""
    for path in (*MODULES, ROOT / "server.py"):
        name = name_of(path)
        for other in imported(path):
            if other.split(".")[0] not in (*PACKAGES, "server"):
                continue
            assert floor(other) <= floor(name), f"{name} imports {other}"
            if name.startswith("streaming") and not other.startswith(("streaming", "server")):
                assert other.startswith("engine.wire"), f"{name} imports {other}"


@pytest.mark.parametrize("package", ["streaming", "engine.wire"])
def test_the_server_process_imports_no_torch(package: str) -> None:
    """Neither `streaming` nor `engine.wire` does, not even through something else."""
    program = (
        f"import sys, pkgutil, importlib, {package} as package\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_class_names_are_unique() -> None:
    """Two classes share a name only where SHARED_NAMES says so, and that names none in vain."""
    modules = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(name_of(path))
    shared = {name: places for name, places in modules.items() if len(places) > 1}
    assert set(shared) == SHARED_NAMES, shared


def test_transformers_does_not_take_our_kernels_for_another_package() -> None:
    """The folder `kernels` must not look like Hugging Face's package of that name."""
    assert not is_kernels_available()


def test_cited_sections_of_the_reference_exist() -> None:
    """Sources cite docs/REFERENCE.md by sections that it has, and no document that is not in the repository."""
    sections = set(re.findall(r"^### (\d+\.\d+) ", (ROOT / "docs/REFERENCE.md").read_text(), re.MULTILINE))
    own = Path(__file__)
    for path in (*MODULES, *(path for path in (ROOT / "tests").glob("*.py") if path != own)):
        text = path.read_text()
        assert "FACTS" not in text, path
        for citation in re.findall(r"REFERENCE((?:(?:,| to| and|-)? ?\d+\.\d+)+)", text):
            missing = set(re.findall(r"\d+\.\d+", citation)) - sections
            assert not missing, f"{path} cites {missing}"


def test_the_tree_of_contributing_is_the_tree() -> None:
    """Each room in the drawn tree exists, and each folder of the packages is drawn."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    drawn: set[str] = set()
    above = ""
    for indent, name in re.findall(r"^( *)([\w.]+(?:/\w+)*/?)  ", text.split("```")[3], re.MULTILINE):
        above = above if indent else name
        drawn.add(above + name if indent else name)
    missing = [name for name in drawn if not (ROOT / name).exists()]
    assert not missing
    folders = {path for package in PACKAGES for path in (ROOT / package).iterdir() if path.is_dir()}
    rooms = {f"{path.relative_to(ROOT)}/" for path in folders if any(path.glob("*.py")) or any(path.glob("*.js"))}
    assert rooms - drawn <= {"kernels/tools/"}


def test_ci_runs_the_command_of_the_readme() -> None:
    """The README's command for the tests stands in `.ci/run` to the letter."""
    commands = re.findall(r"^(pip install .*pytest)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 1 and commands[0] in (ROOT / ".ci/run").read_text()


def code_of(document: Path) -> list[str]:
    """Lines of a document's code blocks, and what stands between backticks."""
    parts = document.read_text().split("```")
    return [line for block in parts[1::2] for line in block.splitlines()] + re.findall(
        r"`([^`]+)`", "".join(parts[::2])
    )


def anchors(document: Path) -> set[str]:
    """Headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_diagram_of_the_engine_shows_its_transitions() -> None:
    """ARCHITECTURE.md draws the arrows of EngineStatus that the code allows, and no other."""
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    drawn = set(re.findall(r"^    ([A-Z]+) --> ([A-Z]+)", text, re.MULTILINE))
    assert drawn == {(before.name, after.name) for before, afters in TRANSITIONS.items() for after in afters}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    """The file that a link names exists, and the heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        file, _, anchor = target.partition("#")
        if "://" not in target:
            linked = document.parent / file if file else document
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("document", PRESENT, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    """Every path that begins with a folder or module of ours exists; `*` may stand for names."""
    for line in code_of(document):
        for path in re.findall(r"(?<![\w/.-])(?:engine|kernels|streaming|tests|docs|\.ci)/[\w./*-]*", line):
            assert path in FOREIGN_PATHS or any(ROOT.glob(path.rstrip("/."))), path


@pytest.mark.parametrize("document", PRESENT, ids=lambda path: path.name)
def test_commands_in_documents_exist(document: Path) -> None:
    """Every `python -m` names a module whose help knows the command and its options, every `make` a verb."""
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code_of(document):
        line = line.split("#")[0]
        for words in re.findall(r"\bmake ((?:[a-z]+ ?)+)", line):
            assert set(words.split()) <= verbs, line
        for module, rest in re.findall(r"\bpython (?:-m )?([\w./]+)([^|]*)", line):
            if module.split(".")[0] not in (*PACKAGES, "server"):
                assert (ROOT / module).exists() or importlib.util.find_spec(module), line
                continue
            command = re.match(r" ([a-z][a-z-]*)", rest)
            known = usage(module.removesuffix(".py"), command[1] if command else None)
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
                assert option in known, f"{line}: {option}"


@cache
def usage(module: str, command: str | None) -> str:
    """What a command of ours prints for --help."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    main = importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module).main
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as exit_:
        main([command, "--help"] if command else ["--help"])
    assert exit_.value.code == 0, f"{module} {command}"
    return said.getvalue()
