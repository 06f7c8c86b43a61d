"""Folders in which plugin code has worked: whatever it made there, they can be removed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, however deep; what cannot be removed is left. Raises nothing.

    `shutil.rmtree` of Python 3.11 calls itself at each level, and holds a descriptor there: a thousand levels are the
    end of it. Here each inner folder is moved up to the first level before it is looked into.
    """
    token, moved = uuid4().hex, 0
    with suppress(OSError):
        folder.unlink()  # it may have been replaced by a file, or by a link that leads elsewhere
    pending, emptied = [folder], []
    while pending:
        directory = pending.pop()
        with suppress(OSError):
            directory.chmod(0o700)
            for path in list(directory.iterdir()):
                with suppress(OSError):
                    if path.is_symlink() or not path.is_dir():
                        path.unlink()
                        continue
                    if directory != folder:
                        moved += 1
                        path = path.rename(folder / f".{token}.{moved}")  # the same folder
                    pending.append(path)
        emptied.append(directory)
    for directory in reversed(emptied):
        with suppress(OSError):
            directory.rmdir()
