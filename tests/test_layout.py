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
        "for module in pkgutil.walk_packages(streaming.__path__, 'streaming.'): importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_transformers_does_not_take_our_kernels_for_another_package() -> None:
    """The folder `kernels` must not look like Hugging Face's package of that name."""
    assert not is_kernels_available()
