"""The guide for plugin authors is true: each of its examples runs, and nothing of the contract is left out."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service.codec import replace_marked
from service.errors import InputInvalidError
from service.models import ErrorType
from service.plugins.context import Context
from service.plugins.discovery import GROUP
from service.plugins.loading import ATTRIBUTES, LoadedPlugin, load
from service.plugins.manifest import PluginSource
from service.plugins.output import plain

from .conftest import Sent

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"^```(\S*) ?(.*?)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@dataclasses.dataclass
class Example:
    """A plugin of the guide with the JSON blocks that follow it."""

    value: str
    code: str
    documents: list[tuple[str, Any]]


def examples() -> Iterator[Example]:
    example: Example | None = None
    for language, info, body in BLOCKS:
        if language == "python":
            if example:
                yield example
            example = Example(info, body, [])
        elif language == "json":
            assert example
            document = json.loads(body)
            example.documents.append((info, replace_marked(document, "$bytes", lambda text: base64.b64decode(text))))
    if example:
        yield example


EXAMPLES = list(examples())


@pytest.fixture(params=EXAMPLES, ids=[example.value for example in EXAMPLES])
def example(request: pytest.FixtureRequest) -> Example:
    found = request.param
    assert isinstance(found, Example)
    return found


@pytest.fixture
def plugin(example: Example, monkeypatch: pytest.MonkeyPatch) -> LoadedPlugin:
    name = example.value.partition(":")[0]
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(example.code, f"docs/plugins.md {example.value}", "exec"), module.__dict__)
    loaded = load(PluginSource(name=name, value=example.value, distribution="guide", distribution_version="1"))
    if loaded.setup:
        loaded.setup()
    return loaded


def test_an_example_does_what_the_guide_says(
    example: Example, plugin: LoadedPlugin, context: Context, sent: Sent
) -> None:
    said = dict(example.documents)
    args, kwargs = plugin.bind(said["payload"], context)
    returned = plugin.run(*args, **kwargs)
    if inspect.isawaitable(returned):
        returned = asyncio.run(_outcome(returned))

    assert plain(returned) == said["result"]
    if "sent" in said:
        assert [_in_words(header) for header, _ in sent.messages] == said["sent"]
    if "refused" in said:
        with pytest.raises(InputInvalidError) as refusal:
            plugin.bind(said["refused"], context)
        assert {problem.pointer: problem.message for problem in refusal.value.problems} == said["problems"]
    if plugin.teardown:
        plugin.teardown()


async def _outcome(awaitable: Any) -> Any:
    return await awaitable


def _in_words(header: dict[str, Any]) -> str:
    return f"{header['type']} {header['name'] if 'name' in header else round(header['fraction'], 2)}"


def test_every_block_of_the_guide_is_of_a_kind_that_is_run() -> None:
    assert {language for language, _, _ in BLOCKS} == {"python", "json", "toml"}
    assert {info for language, info, _ in BLOCKS if language == "json"} == {
        "payload",
        "result",
        "refused",
        "problems",
        "sent",
    }
    assert GUIDE.count("```") == 2 * len(BLOCKS)


def test_the_packaging_example_names_the_first_plugin() -> None:
    [packaging] = [tomllib.loads(body) for language, _, body in BLOCKS if language == "toml"]

    assert packaging["project"]["entry-points"][GROUP] == {"word_count": EXAMPLES[0].value}


def test_the_first_example_has_ten_lines() -> None:
    assert len(EXAMPLES[0].code.splitlines()) <= 10


@pytest.mark.parametrize("name", [*ATTRIBUTES, *ErrorType, "setup", "teardown"])
def test_every_attribute_and_error_type_is_in_the_guide(name: str) -> None:
    assert f"`{name}`" in GUIDE or f"`{name}(self)`" in GUIDE


def test_every_member_of_the_context_is_in_the_guide(context: Context) -> None:
    members = [name for name in dir(context) if not name.startswith("_")]

    assert "progress" in members
    for name in members:
        assert f"`context.{name}" in GUIDE
