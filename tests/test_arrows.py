"""Imports go one way: toy_mdps -> cpi <- llm; cpi is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"cpi": {"cpi"}, "toy_mdps": {"toy_mdps", "cpi"}, "llm": {"llm", "cpi"}}
DRAWING = {"cpi/__main__.py", "cpi/experiments"}


def _imports(path: Path) -> set[str]:
    """Top-level names imported anywhere in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_along_the_arrows(package):
    ours = set(ALLOWED) | {"tests", "notebooks", "benchmarks"}
    experiments = {"toy_mdps"} if package == "cpi" else set()
    for path in _files(package):
        in_experiments = "experiments" in path.parts or path.name == "__main__.py"
        allowed = ALLOWED[package] | (experiments if in_experiments else set())
        assert _imports(path) & ours <= allowed, path


def test_cpi_needs_numpy_and_scipy_only():
    standard = set(sys.stdlib_module_names)
    for path in _files("cpi"):
        relative = str(path.relative_to(ROOT))
        extra = {"sympy"} if relative == "cpi/symbolic.py" else set()
        if relative.startswith("cpi/experiments") or relative == "cpi/__main__.py":
            extra = {"matplotlib", "tqdm", "toy_mdps"}
        assert _imports(path) - standard <= {"cpi", "numpy", "scipy"} | extra, relative


def test_importing_cpi_loads_no_torch_and_no_sympy():
    code = (
        "import sys, cpi.bounds, cpi.groups, cpi.policy_gradient;"
        "print([m for m in ('torch', 'sympy', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
