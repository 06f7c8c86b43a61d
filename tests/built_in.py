"""Which of the plugins that are built in a service finds installed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

_OURS = distribution("jobservice")


def install_only(folder: Path, plugins: Iterable[str]) -> Path:
    """A new folder in `folder`, for PYTHONPATH, on which these of the plugins that are built in are installed.

    A service describes all that is installed, each plugin in a process of its own, and most tests use one or two of the
    six: the others take each start half of its time. Of two distributions of one name Python knows the first alone.
    """
    place = Path(tempfile.mkdtemp(prefix="built-in-", dir=folder))
    metadata = place / f"jobservice-{_OURS.version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: jobservice\nVersion: {_OURS.version}\n")
    declared = _OURS.entry_points.select(group="service.plugins")
    lines = (f"{declared[plugin].name} = {declared[plugin].value}\n" for plugin in plugins)
    (metadata / "entry_points.txt").write_text("".join(("[service.plugins]\n", *lines)))
    return place
