"""Which plugins are installed, read from package metadata alone: no plugin code is imported here."""

from __future__ import annotations

import dataclasses
import logging
import re
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Final

from service.plugins.manifest import PluginSource

GROUP: Final = "service.plugins"

# A plugin's name stands in URLs, in SQL and in metric labels.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAMES: Final = "a name is 1-100 of A-Z, a-z, 0-9, '.', '_' and '-', and begins with a letter or digit"

logger = logging.getLogger(__name__)


def installed_plugins() -> dict[str, PluginSource]:
    """Every plugin of the entry-point group `service.plugins`, by its name.

    Where two distributions name the same plugin, the first distribution by name wins; the other is logged and left out,
    as is a name that no plugin may have.
    """
    sources: dict[str, PluginSource] = {}
    installed = map(_source, entry_points(group=GROUP))
    for source in sorted(installed, key=lambda source: (source.distribution, source.value)):
        if not _NAME.fullmatch(source.name):
            logger.warning(
                "plugin %r of %s is left out: %s. Rename its entry point.", source.name, source.distribution, _NAMES
            )
        elif (winner := sources.setdefault(source.name, source)) is not source:
            logger.warning(
                "plugin %r of %s is left out: %s has one of that name",
                source.name,
                source.distribution,
                winner.distribution,
            )
    return sources


def as_installed_now(source: PluginSource) -> PluginSource:
    """The source with the version its distribution has now: another may have been installed since the first look."""
    try:
        installed = _said(distribution(source.distribution), "Version")
    except PackageNotFoundError:  # as while it is being installed
        return source
    return dataclasses.replace(source, distribution_version=installed or source.distribution_version)


def _source(entry_point: EntryPoint) -> PluginSource:
    return PluginSource(
        name=entry_point.name,
        value=entry_point.value,
        distribution=_said(entry_point.dist, "Name") or "unknown",
        distribution_version=_said(entry_point.dist, "Version") or "0",
    )


def _said(installed: Distribution | None, field: str) -> str | None:
    # Reading a field that is not there warns, and is to raise.
    if installed is None or field not in installed.metadata:
        return None
    return installed.metadata[field]
