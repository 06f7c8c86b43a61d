"""Installed plugins are found in package metadata, without an import."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from service.plugins.discovery import installed_plugins
from service.plugins.manifest import PluginSource


def install(folder: Path, distribution: str, entry_points: str, *, metadata: bool = True) -> None:
    info = folder / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(f"[service.plugins]\n{entry_points}\n")
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_plugins_of_this_distribution_are_installed() -> None:
    plugins = installed_plugins()

    assert {"barcode", "echo", "image_info", "ocr", "sleep", "thumbnail"} <= plugins.keys()
    assert plugins["echo"].distribution == "jobservice"
    assert plugins["echo"].value == "service.plugins.builtin.echo:echo"


def test_a_plugin_of_another_distribution_is_found_and_not_imported(folder: Path) -> None:
    install(folder, "page-tools", "rotate = page_tools_nowhere:Rotate")

    assert installed_plugins()["rotate"] == PluginSource(
        name="rotate", value="page_tools_nowhere:Rotate", distribution="page-tools", distribution_version="1.5"
    )
    assert "page_tools_nowhere" not in sys.modules


def test_the_first_distribution_by_name_keeps_a_name_that_two_claim(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(folder, "zebra-tools", "rotate = zebra:Rotate")
    install(folder, "ant-tools", "rotate = ant:Rotate")

    with caplog.at_level(logging.WARNING):
        assert installed_plugins()["rotate"].value == "ant:Rotate"
    assert "'rotate' of zebra-tools is left out: ant-tools" in caplog.text


@pytest.mark.parametrize("name", ["a/b", "-x", "", "ü", "x" * 101, "a b"])
def test_a_name_that_fits_no_url_is_left_out(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(folder, "odd-tools", f"{name} = odd:Odd")

    with caplog.at_level(logging.WARNING):
        assert not any(source.value == "odd:Odd" for source in installed_plugins().values())
    assert f"plugin {name!r} of odd-tools is left out: a name is 1-100 of A-Z, a-z, 0-9" in caplog.text


def test_a_distribution_with_broken_metadata_does_not_hide_the_others(folder: Path) -> None:
    install(folder, "broken-tools", "rotate = broken:Rotate", metadata=False)

    plugins = installed_plugins()

    assert plugins["rotate"].value == "broken:Rotate"
    assert "echo" in plugins
