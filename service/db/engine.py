"""Engines with the profile each database needs."""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiosqlite
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service.db.statements import POSTGRESQL
from service.errors import StartupError

BUSY_TIMEOUT_MS: Final = 5_000
#: Pages of the file that the writer holds, and the readers together; beyond that the system's own cache has them.
_CACHE_KIB: Final = 16 * 1024
_JOURNAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
_MIGRATION_LOCK_TIMEOUT: Final = "10s"
#: How long a process waits for another one's migration of the same file.
_MIGRATION_BUSY_TIMEOUT_MS: Final = 600_000

NO_DRIVER: Final = (
    "PostgreSQL needs the extra `postgres`: pip install 'jobservice[postgres]', "
    "or leave JOBSERVICE_DATABASE_URL unset for the embedded database."
)


class DatabaseKind(enum.Enum):
    """The databases this service runs on."""

    SQLITE = "sqlite+aiosqlite"
    POSTGRESQL = "postgresql+asyncpg"


_KINDS: Final = {kind.name.lower(): kind for kind in DatabaseKind}
_PORT: Final = 5432
#: What libpq and so most people call it, and what the driver does.
_DRIVERS_NAMES: Final = {"sslmode": "ssl"}
#: Parameters of a PostgreSQL URL that the driver takes as text.
_PARAMETERS: Final = frozenset(
    {
        *("host", "port", "user", "password", "passfile", "database", "service", "servicefile", "ssl", "direct_tls"),
        *("target_session_attrs", "krbsrvname", "gsslib", "prepared_statement_cache_size"),
    }
)
#: The rest of such a password would be read as a part of the host, and shown as one.
_AT_IN_PASSWORD: Final = re.compile(r"[\w+]+://[^:/]*:[^@]*@.*@", re.DOTALL)
_NO_PORT: Final = (
    "JOBSERVICE_DATABASE_URL has a port that is none: write HOST:PORT with a number from 1 to 65535, for each host "
    "where there are several, and @, / and : in a password as %40, %2F and %3A."
)


def database_kind(database_url: str) -> DatabaseKind:
    """Which database a URL names; raises `StartupError` for any that is not supported."""
    url = _parsed(database_url)
    backend = url.get_backend_name()
    if url.drivername not in (backend, *(kind.value for kind in DatabaseKind)) or backend not in _KINDS:
        raise StartupError(
            f"A database of the kind {url.drivername} is not supported: "
            "use postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE or sqlite+aiosqlite:///PATH, "
            "or leave JOBSERVICE_DATABASE_URL unset for the embedded database."
        )
    return _KINDS[backend]


def sqlite_path(database_url: str) -> Path:
    """The file behind an `sqlite+aiosqlite:///...` URL; raises `StartupError` when there is none."""
    url = _parsed(database_url)
    if not url.database or url.database == ":memory:":
        raise StartupError("An in-memory database cannot keep jobs: name a file, sqlite+aiosqlite:///PATH.")
    return Path(url.database)


def server_url(database_url: str) -> sa.URL:
    """A PostgreSQL URL as the driver takes it; raises `StartupError` for what that would not understand."""
    url, _ = _for_driver(database_url)
    return url


def server_options(database_url: str) -> dict[str, Any]:
    """The same as arguments of the driver's `connect`."""
    _, options = _for_driver(database_url)
    return options


def _for_driver(database_url: str) -> tuple[sa.URL, dict[str, Any]]:
    url = _parsed(database_url)
    query = {_DRIVERS_NAMES.get(name, name): value for name, value in url.query.items()}
    if unknown := sorted(query.keys() - _PARAMETERS):
        raise StartupError(
            f"JOBSERVICE_DATABASE_URL has the parameter {unknown[0]!r}, which is none: take it out, or use one of "
            f"{', '.join(sorted(_PARAMETERS | _DRIVERS_NAMES.keys()))}."
        )
    url = url.set(drivername=DatabaseKind.POSTGRESQL.value, query=query)
    try:
        _, options = POSTGRESQL.create_connect_args(url)  # type: ignore[no-untyped-call]  # SQLAlchemy types no dialect
    except (ValueError, sa.exc.ArgumentError) as error:
        raise StartupError(_NO_PORT) from error
    if not all(0 < port < 65_536 for port in sa.util.to_list(options.get("port", _PORT))):
        raise StartupError(_NO_PORT)
    return url, options


def database_place(database_url: str) -> str:
    """Which database it is and where, with neither user nor password."""
    if database_kind(database_url) is DatabaseKind.SQLITE:
        return str(sqlite_path(database_url).absolute())
    url = server_url(database_url)
    named = ", ".join(url.normalized_query.get("host", ())) or "its server"
    return f"{url.database} at {f'{url.host}:{url.port or _PORT}' if url.host else named}"


def _parsed(database_url: str) -> sa.URL:
    if _AT_IN_PASSWORD.match(database_url):
        raise StartupError("JOBSERVICE_DATABASE_URL has an @ in its password: write it as %40 there.")
    try:
        return make_url(database_url)
    except sa.exc.ArgumentError as error:
        raise StartupError(
            "JOBSERVICE_DATABASE_URL is not a database URL: use postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE, "
            "or leave it unset for the embedded database."
        ) from error
    except (ValueError, TypeError):
        # Its text may be the rest of a password.
        raise StartupError(_NO_PORT) from None


def create_writer_engine(
    database_url: str, *, foreign_keys: bool = True, busy_timeout_ms: int = BUSY_TIMEOUT_MS
) -> AsyncEngine:
    """One connection that may write and the only one that checkpoints; every transaction is `BEGIN IMMEDIATE`.

    Commits are durable (`synchronous=FULL`: NORMAL loses acknowledged rows in a power cut). Migrations run with
    `foreign_keys` off: batch mode rebuilds tables, and cascades would empty their children.
    """
    pragmas = (
        f"busy_timeout={busy_timeout_ms}",
        "journal_mode=WAL",
        "synchronous=FULL",
        f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
        f"cache_size=-{_CACHE_KIB}",
        f"journal_size_limit={_JOURNAL_LIMIT_BYTES}",
        "trusted_schema=OFF",
        # `wal.WriteAheadLog` checkpoints: SQLite's own would hold up the commit it follows, and hide its errors.
        "wal_autocheckpoint=0",
    )
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{sqlite_path(database_url)}", pool_size=1, max_overflow=0, hide_parameters=True
    )
    return _with_profile(engine, pragmas, begin="BEGIN IMMEDIATE")


def create_reader_engine(database_url: str, *, connections: int) -> AsyncEngine:
    """Read-only connections; they can neither write nor checkpoint."""
    engine = create_async_engine(
        f"sqlite+aiosqlite:///file:{sqlite_path(database_url).absolute()}?mode=ro&uri=true",
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,
    )
    pragmas = (f"busy_timeout={BUSY_TIMEOUT_MS}", f"cache_size=-{_CACHE_KIB // connections}", "query_only=ON")
    return _with_profile(engine, pragmas, begin="BEGIN")


def _with_profile(engine: AsyncEngine, pragmas: tuple[str, ...], *, begin: str) -> AsyncEngine:
    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN comes after the first SELECT: a read before a write would not be one transaction.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def create_migration_engine(database_url: str) -> AsyncEngine:
    """For changes of the schema, whatever the database; raises `StartupError` when its driver is not installed."""
    if database_kind(database_url) is DatabaseKind.SQLITE:
        return create_writer_engine(database_url, foreign_keys=False, busy_timeout_ms=_MIGRATION_BUSY_TIMEOUT_MS)
    settings = {"application_name": "jobservice migrate", "lock_timeout": _MIGRATION_LOCK_TIMEOUT}
    try:
        return create_async_engine(
            server_url(database_url),
            poolclass=sa.NullPool,
            hide_parameters=True,
            connect_args={"server_settings": settings},
        )
    except ImportError as error:
        raise StartupError(NO_DRIVER) from error


@contextlib.asynccontextmanager
async def held_connection(engine: AsyncEngine) -> AsyncIterator[aiosqlite.Connection]:
    """The driver's own connection, out of the pool while the block runs: its calls cost one thread hop each."""
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        if not isinstance(driver, aiosqlite.Connection):
            raise TypeError(f"{type(driver).__name__} is not an aiosqlite connection")
        yield driver
