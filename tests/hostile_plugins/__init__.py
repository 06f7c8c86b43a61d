"""Plugins that do what a plugin must not do, and some that behave; on the folder itself all of them are installed."""

from __future__ import annotations

import configparser
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

_ALL = Path(__file__).parent
_METADATA = "hostile_plugins-1.0.dist-info"
_GROUP = "service.plugins"


def names() -> list[str]:
    """Every hostile plugin there is."""
    return [*_declared()[_GROUP]]


def install(folder: Path, plugins: Iterable[str]) -> Path:
    """A new folder in `folder`, for PYTHONPATH, on which these plugins and no others are installed.

    A service describes all that is installed, each plugin in a process of its own: these fifty take it ten seconds of a
    core. Raises `KeyError` for a plugin that there is not.
    """
    place = Path(tempfile.mkdtemp(prefix="plugins-", dir=folder))
    for module in _ALL.glob("hostile*.py"):
        shutil.copy(module, place)
    shutil.copytree(_ALL / _METADATA, place / _METADATA)
    declared = _declared()
    declared[_GROUP] = {plugin: declared[_GROUP][plugin] for plugin in plugins}
    with (place / _METADATA / "entry_points.txt").open("w") as file:
        declared.write(file)
    return place


def _declared() -> configparser.ConfigParser:
    declared = configparser.ConfigParser(delimiters="=")
    declared.read(_ALL / _METADATA / "entry_points.txt")
    return declared
