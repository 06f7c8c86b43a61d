"""The commands that are the service, and keep its database: `serve`, `work`, `migrate`, `snapshot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from service.cli.loading import uncollected
from service.cli.output import put, redacted
from service.cli.parameters import MANY, Json, ServiceSettings, warn_of_unknown_settings
from service.settings import Settings


def serve(*, settings: ServiceSettings = None) -> int:
    """Run the service until SIGTERM or Ctrl-C; running jobs may then finish."""
    settings = settings or Settings()
    warn_of_unknown_settings()
    # The service side takes a second to import, which neither a client command nor a wrong setting should pay for.
    with uncollected():
        from service.app import run_service

    return run_service(settings)


def work(
    *,
    plugin: Annotated[tuple[str, ...], MANY, Parameter(name=("--plugin", "-p"))] = (),
    settings: ServiceSettings = None,
) -> int:
    """Run jobs from a shared PostgreSQL without listening for requests, until SIGTERM or Ctrl-C.

    Parameters:
        plugin: Take jobs of this plugin only; may be repeated. Default: of every plugin installed here
    """
    settings = settings or Settings()
    warn_of_unknown_settings()
    # As in `serve`.
    with uncollected():
        from service.app import run_service

    return run_service(settings, listen=False, only_plugins=plugin)


async def migrate(*, settings: ServiceSettings = None, json: Json = False) -> None:
    """Bring the database to this version, as `serve` and `work` do when they start."""
    settings = settings or Settings()
    # As in `serve`.
    with uncollected():
        from service import logs
        from service.app import migrate as migrate_database

    logs.configure(settings.log_level, settings.log_format)
    revision = await migrate_database(settings)
    url = redacted(settings.resolved_database_url)
    put({"database_url": url, "revision": revision} if json else f"The database {url} is at revision {revision}.")


async def snapshot(
    file: Annotated[Path, Parameter(name="FILE")], /, *, settings: ServiceSettings = None, json: Json = False
) -> None:
    """Copy the embedded database to FILE as it is now, while the service goes on; stored files are not in it."""
    settings = settings or Settings()
    # As in `serve`.
    from service import logs
    from service.app import snapshot as copy_database

    logs.configure(settings.log_level, settings.log_format)
    await copy_database(settings, file)
    size = file.stat().st_size
    put({"file": str(file), "size_bytes": size} if json else f"{file} has {size:,} bytes.")
