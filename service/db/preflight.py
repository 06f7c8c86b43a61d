"""What must be true of an SQLite file before it is opened: where one has been, none is made anew."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path
from typing import Final

import structlog

from service.db.blob_files import write_durably
from service.errors import StartupError
from service.models import timestamp

#: How long the check after an unclean stop may take; a database too large for that is opened unchecked.
CHECK_S: Final = 1.0

#: File systems whose locks or shared memory SQLite cannot rely on.
_REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "fuse.sshfs", "fuse.glusterfs"}
)
#: The table that is in every database that migrations have made.
_OURS: Final = "alembic_version"
#: Where a file says by which version of the format it is written, and the one of a file that is not in WAL mode.
_WRITTEN_BY: Final = 18
_WITHOUT_LOG: Final = b"\x01"
_ADVICE: Final = "stop here, restore a backup, or recover what is readable with `sqlite3 FILE .recover`"

log = structlog.get_logger(__name__)


def marker_of(path: Path) -> Path:
    """The file that says that `path` has been a database."""
    return path.with_name(path.name + ".made")


def _wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def inspect(path: Path) -> None:
    """Raise `StartupError` where opening `path` could only make things worse; it changes nothing.

    Reads the whole file, for `CHECK_S` at most, after a stop that was not in order.
    """
    if (kind := file_system(path.parent, Path("/proc/self/mountinfo"))) in _REMOTE:
        raise StartupError(
            f"{path} is on a network file system ({kind}), where SQLite's locks do not hold: "
            "choose a JOBSERVICE_DATA_DIR on a local disk, or another JOBSERVICE_DATABASE_URL."
        )
    check_access(path)
    size = path.stat().st_size if path.exists() else None
    if not size:
        if (marker := marker_of(path)).exists():
            state = "missing" if size is None else "empty"
            raise StartupError(
                f"{path} is {state}, but held a database before: restore a backup, or remove {marker} as well "
                "to begin with an empty one."
            )
        return
    wal = _wal_of(path)
    if wal.exists() and wal.stat().st_size:  # the last connection to close in order takes it away
        _refuse_foreign_log(path, wal)
        _check(path)
    _refuse_foreign(path)


def check_access(path: Path) -> None:
    """Raise `StartupError` where this user cannot open what is there of the database."""
    if path.is_dir():
        raise StartupError(f"{path} is a folder: name a file in JOBSERVICE_DATABASE_URL, or move the folder away.")
    for file in (path, _wal_of(path), path.with_name(path.name + "-shm")):
        if file.exists() and not os.access(file, os.R_OK):
            found = file.stat()
            raise StartupError(
                f"{file} may not be read and written by this user (uid {os.getuid()}): it belongs to uid "
                f"{found.st_uid} and has mode {found.st_mode & 0o777:o}. Run jobservice as its owner, or give this "
                "user all that is beside it."
            )


def remember(path: Path) -> None:
    """Leave the mark that `path` is a database from now on."""
    marker = marker_of(path)
    if not marker.exists():
        write_durably(marker, f"{path.name} was made {timestamp()}; without it the service does not start.\n".encode())


def _open(path: Path) -> contextlib.closing[sqlite3.Connection]:
    # Read-only: closing the last connection would else copy the log into a file that may be damaged. Where there is no
    # log, one would be made, and left there.
    how = "mode=ro" if _wal_of(path).exists() else "immutable=1"
    return contextlib.closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, check_same_thread=False)
    )


def _refuse_foreign(path: Path) -> None:
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
    tables: set[str] = set()
    # What keeps it from being read is told by whoever opens it to stay.
    with contextlib.suppress(sqlite3.Error), _open(path) as connection:
        tables = {name for (name,) in connection.execute(query)}
    if tables and _OURS not in tables:
        raise StartupError(
            f"{path} is no database of jobservice: it has the table {min(tables)!r} of another program. "
            "Choose another JOBSERVICE_DATABASE_URL or JOBSERVICE_DATA_DIR."
        )


def _refuse_foreign_log(path: Path, wal: Path) -> None:
    """A copy by `VACUUM INTO`, as all that are made here, has never had a log: the one beside it would spoil it."""
    with path.open("rb") as file:
        is_copy = file.read(_WRITTEN_BY + 1)[_WRITTEN_BY:] == _WITHOUT_LOG
    if is_copy:
        raise StartupError(
            f"{path} is a copy that was put in the place of another file, and {wal} is the log of that file: "
            f"move {wal.name} away. Read with the copy it would damage it."
        )


def _check(path: Path) -> None:
    with _open(path) as connection:
        alarm = threading.Timer(CHECK_S, connection.interrupt)
        alarm.start()
        try:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            log.info("database opened unchecked after an unclean stop", database=str(path), reason=str(error))
            return
        except sqlite3.DatabaseError as error:
            found = str(error)
        finally:
            alarm.cancel()
    if found != "ok":
        raise StartupError(f"The database {path} is damaged ({found.strip().splitlines()[-1]}): {_ADVICE}.")


def file_system(directory: Path, mounts: Path) -> str:
    """The type of the file system under `directory`, by a mount table in the form of /proc/self/mountinfo."""
    resolved, best, kind = directory.resolve(), Path("/"), ""
    for line in mounts.read_text().splitlines():
        place, _, source = line.partition(" - ")
        point = Path(place.split()[4].encode().decode("unicode_escape"))
        if resolved.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, source.split()[0]
    return kind
