"""The command `config`: every setting in effect, and where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from service.cli.output import print_table, put, redacted, safe, table_of
from service.cli.parameters import Service, ServiceSettings, warn_of_unknown_settings
from service.models import JSON
from service.settings import ClientSettings, Settings, option_of, variable_of


def config(*, settings: ServiceSettings = None, service: Service = Service()) -> None:
    """Show every setting in effect and where it comes from; passwords and keys are hidden."""
    settings = settings or Settings()
    warn_of_unknown_settings()
    calling = service.settings or ClientSettings()
    shown = {"database_url": redacted(settings.resolved_database_url), "url": redacted(calling.url)}
    if calling.api_key:
        shown["api_key"] = "***"
    rows = [*_effective(settings, shown), *_effective(calling, shown)]
    if service.json:
        put({row.name: {"value": row.value, "source": row.source, "variable": row.variable} for row in rows})
        return
    table = table_of("setting", "value", "from", "option", "variable")
    for row in rows:
        value = "" if row.value is None else str(row.value)
        table.add_row(row.name, safe(value), row.source, option_of(row.name), row.variable)
    print_table(table)


@dataclasses.dataclass(frozen=True, slots=True)
class _Setting:
    name: str
    variable: str
    value: JSON
    source: Literal["option", "environment", ".env", "default"]


def _effective(settings: BaseSettings, shown: Mapping[str, str]) -> Iterator[_Setting]:
    kind = type(settings)
    without_options = kind()
    environment, dot_env = EnvSettingsSource(kind)(), DotEnvSettingsSource(kind)()
    for name, value in settings.model_dump(mode="json").items():
        source: Literal["option", "environment", ".env", "default"]
        if getattr(settings, name) != getattr(without_options, name):
            source = "option"
        elif name in environment:
            source = "environment"
        else:
            source = ".env" if name in dot_env else "default"
        yield _Setting(name, variable_of(name), shown.get(name, value), source)
