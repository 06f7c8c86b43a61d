"""Loads plugins that tests define, by the path the worker uses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service.plugins.context import Context
from service.plugins.loading import LoadedPlugin, load
from service.plugins.manifest import PluginSource

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"

LoadPlugin = Callable[..., LoadedPlugin]


@pytest.fixture
def load_plugin(monkeypatch: pytest.MonkeyPatch) -> LoadPlugin:
    """`load_plugin(target)` loads a class, function or object as the plugin `sample` of `tests` 7.8.9."""

    def load_as_sample(target: Any, name: str = "sample") -> LoadedPlugin:
        module = ModuleType("sample_plugin")
        module.target = target  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sample_plugin", module)
        return load(
            PluginSource(name=name, value="sample_plugin:target", distribution="tests", distribution_version="7.8.9")
        )

    return load_as_sample


class Sent:
    """What a plugin sent through its context."""

    def __init__(self) -> None:
        self.messages: list[tuple[dict[str, Any], list[bytes]]] = []
        self.cancelled = False

    def emit(self, header: dict[str, Any], attachments: Any) -> None:
        self.messages.append((header, list(attachments)))


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def context(sent: Sent, tmp_path: Path) -> Context:
    return Context(
        job_id="01890000-0000-7000-8000-000000000000",
        attempt=1,
        deadline=2_000_000_000.0,
        tmp=lambda: tmp_path,
        emit=sent.emit,
        is_cancelled=lambda: sent.cancelled,
    )
