"""What every file owes its reader."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .walls import ROOT, modules

SOURCES = dict(modules())


@pytest.mark.parametrize("module", [name for name, source in SOURCES.items() if source.strip()])
def test_a_module_says_what_it_owns(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(SOURCES[module]))
    assert docstring, f"{module} has no docstring"
    assert docstring.splitlines()[0].endswith((".", ":")), f"{module}: the first line is not a sentence"


#: What others call by the name of the package: the entry point of the command, and the client.
PUBLIC = {Path("service/cli/__init__.py"), Path("service/client/__init__.py")}


def test_a_package_is_no_shim_that_imports_its_modules_again() -> None:
    packages = {path.relative_to(ROOT) for path in (ROOT / "service").rglob("__init__.py")}
    assert packages >= PUBLIC
    importing = [
        str(path)
        for path in sorted(packages - PUBLIC)
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse((ROOT / path).read_text()).body)
    ]
    assert importing == []


def test_a_revision_stands_alone() -> None:
    # A revision is history: what the service is today must not change what it did.
    importing = [
        path.name
        for path in (ROOT / "migrations/versions").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == "service" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "service")
    ]
    assert importing == []
