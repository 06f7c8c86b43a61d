"""The files of a folder, and the idempotency key of each.

A key is made of what a file is and how it is sent, and of nothing else. So there is nothing to remember: the same
command finds the jobs that it made before, and makes those that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from service.cli.failures import UsageError
from service.cli.inputs import Input, Order


@dataclasses.dataclass(frozen=True, slots=True)
class Folder:
    """Which files: those of `place` that end like one of `patterns`. `run_name` is this time, if there are several."""

    place: Path
    recursive: bool
    patterns: Sequence[str]
    run_name: str

    @property
    def what(self) -> str:
        """Which files are meant, by the options that say so."""
        place = f"in {self.place}" + (" or its folders (--recursive)" if self.recursive else "")
        patterns = " or ".join(f"--match {pattern!r}" for pattern in self.patterns)
        return f"{place} for {patterns}" if patterns else place

    def names(self, excluded: Path | None) -> list[str]:
        """The paths of all but folders in it, sorted, without hidden ones and what is below `excluded`. It blocks.

        Raises `UsageError` for a folder that cannot be read, and where all of it would be `excluded`.
        """
        found: list[str] = []
        left_out = excluded and excluded.resolve()
        if left_out == self.place.resolve() and not self.patterns:
            raise UsageError(
                f"--output {excluded} is the folder itself: the next time its results would be sent too. "
                "Name a folder in it, which is left out, or say with --match which files are meant."
            )
        for here, folders, files in os.walk(self.place, onerror=_unreadable):
            folders[:] = [
                name
                for name in folders
                if self.recursive and not name.startswith(".") and (Path(here) / name).resolve() != left_out
            ]
            for name in files:
                path = Path(here) / name
                if not name.startswith(".") and self._takes(path):
                    found.append(path.relative_to(self.place).as_posix())
        return sorted(found)

    def _takes(self, path: Path) -> bool:
        return not self.patterns or any(path.match(pattern) for pattern in self.patterns)


def key_of(folder: Folder, order: Order, name: str, given: Input) -> str:
    """The idempotency key of a file: the same for the same content, name in the folder, order and run."""
    options = dataclasses.asdict(order.options)
    how = [1, folder.run_name, order.plugin, name, given.media_type, dict(order.fields), options]
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    digest.update(b"\n")
    digest.update(given.data or b"")
    return f"file-{digest.hexdigest()}"


def _unreadable(error: OSError) -> None:
    raise UsageError(f"Cannot read {error.filename}: {(error.strerror or str(error)).lower()}.") from error
