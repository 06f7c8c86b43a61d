"""A real Chromium, and what a page in it did that a page of this service must not do."""

from __future__ import annotations

import os
import shutil
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

EXECUTABLE: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Where CI is true, a missing browser fails instead.
needs_browser: Final = pytest.mark.skipif(
    EXECUTABLE is None and os.environ.get("CI") != "true", reason="there is no chromium"
)
#: Tests run as root in containers, where Chromium's own sandbox cannot be.
LAUNCH: Final[dict[str, Any]] = {"executable_path": EXECUTABLE, "args": ["--no-sandbox", "--disable-dev-shm-usage"]}


class Watch:
    """Notes the complaints of a page, and the addresses it asked for outside of `url`. Takes pages of either API."""

    def __init__(self, page: Any, url: str) -> None:
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.asked: list[str] = []
        own = urlsplit(url).netloc
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._asked(request.url, own))

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _asked(self, url: str, own: str) -> None:
        place = urlsplit(url)
        self.asked.append(place.path)
        if place.scheme not in ("data", "blob") and place.netloc != own:
            self.foreign.append(url)
