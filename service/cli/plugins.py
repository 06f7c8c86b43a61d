"""The command `plugins`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from service.cli.holding import restraint
from service.cli.output import coloured, pretty, print_table, put, safe, sheet, table_of
from service.cli.parameters import Service
from service.client import Plugin


async def plugins(
    name: Annotated[str | None, Parameter(name="NAME")] = None, /, *, service: Service = Service()
) -> None:
    """List the installed plugins, or show what one of them takes and gives."""
    async with service.client() as client:
        found = await client.plugins() if name is None else [await client.plugin(name)]
    if service.json:
        documents = [plugin.document for plugin in found]
        put(documents if name is None else documents[0])
    elif name is None:
        table = table_of("plugin", "version", "state", "what")
        for plugin in found:
            table.add_row(safe(plugin.name), plugin.version or "", coloured(plugin.state), safe(_about(plugin)))
        print_table(table)
    else:
        print_table(_manual(found[0]))


def _manual(plugin: Plugin) -> Table:
    return sheet(
        [
            ("plugin", f"{plugin.name} {plugin.version or ''} ({plugin.distribution})"),
            ("about", plugin.description or ""),
            ("state", coloured(plugin.state)),
            ("reason", plugin.reason or ""),
            ("control", restraint(plugin)),
            ("takes", "" if plugin.input_schema is None else pretty(plugin.input_schema)),
            ("gives", "" if plugin.output_schema is None else pretty(plugin.output_schema)),
        ]
    )


def _about(plugin: Plugin) -> str:
    return "; ".join(filter(None, (plugin.reason, restraint(plugin)))) or plugin.description or ""
