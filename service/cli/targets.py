"""What `--output` names: looked at before anything is sent, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from service.cli.failures import UsageError

_DEVICES: Final = Path("/dev")


def check_file(target: Path | None) -> None:
    """Raise `UsageError` where a file cannot be written to `target`; None can always. It blocks."""
    if target is None:
        return
    if target.is_dir():
        raise UsageError(f"--output {target} is a folder: name a file in it.")
    if not target.parent.is_dir():
        raise UsageError(f"--output {target}: there is no folder {target.parent}.")
    _check_right(target, target if target.exists() else target.parent)


def check_folder(target: Path | None) -> None:
    """Raise `UsageError` where `target` is no folder and cannot become one; None can always. It blocks."""
    if target is None:
        return
    nearest = next(place for place in (target, *target.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UsageError(f"--output {target}: {nearest} is no folder, and the results of a folder go into one.")
    _check_right(target, nearest)


def _check_right(target: Path, place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise UsageError(f"--output {target}: {place} may not be written to.")


@contextlib.contextmanager
def whole(target: Path) -> Iterator[BinaryIO]:
    """A file to write, which is `target` once the block has ended well, and otherwise nothing. It blocks."""
    place = target.resolve()  # a link stays one
    if target.exists() and not _may_be_replaced(target, place):
        with target.open("wb") as file:
            yield file
        return
    part = place.with_name(f".{place.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        if place.exists():
            part.chmod(place.stat().st_mode)
        part.replace(place)
    except BaseException:  # whatever ended the block, an interrupt too: half a file is none
        part.unlink(missing_ok=True)
        raise


def _may_be_replaced(target: Path, place: Path) -> bool:
    """Whether what is at `target`, in truth at `place`, is a file for which another one can be put there."""
    # A device or a pipe keeps nothing, and must not become a file; what /dev/stdout leads to others have open.
    return target.is_file() and _DEVICES not in target.absolute().parents and os.access(place.parent, os.W_OK)


def write_whole(target: Path, data: bytes) -> None:
    """Make `data` the content of `target`, or leave that as it is. It blocks."""
    with whole(target) as file:
        file.write(data)
