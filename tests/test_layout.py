"""The shape of the project: which module may import which, and how long one may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import is_kernels_available

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "kernels", "streaming")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST = 300


def imported(path: Path) -> set[str]:
    """Top-level names of everything a module imports, at any depth in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_fits_a_room(path: Path) -> None:
    """No module is longer than LONGEST lines."""
    assert len(path.read_text().splitlines()) <= LONGEST


def test_arrows_of_import_point_one_way() -> None:
    """The engine knows no server, kernels know nobody, the server process knows no torch."""
    for path in MODULES:
        package = path.relative_to(ROOT).parts[0]
        names = imported(path)
        if package == "engine":
            assert not names & {"streaming", "server", "aiortc", "fastapi"}, path
        elif package == "kernels":
            assert not names & {"engine", "streaming", "server"}, path
        else:
            assert not names & {"torch", "transformers", "diffusers", "kernels"}, path


def test_the_server_process_imports_no_torch() -> None:
    """Not even through something else."""
    program = (
        "import sys, pkgutil, importlib, streaming\n"
        "for module in pkgutil.iter_modules(streaming.__path__): importlib.import_module('streaming.' + module.name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_module_names_are_unique() -> None:
    """A name means one room in the whole project."""
    names = [path.stem for path in MODULES if path.stem not in ("__init__", "__main__")]
    repeated = {name for name in names if names.count(name) > 1}
    # Each package has a benchmark of its own, under the name its users expect.
    assert repeated <= {"bench"}


def test_transformers_does_not_take_our_kernels_for_another_package() -> None:
    """The folder `kernels` must not look like Hugging Face's package of that name."""
    assert not is_kernels_available()
