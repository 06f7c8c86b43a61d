"""What several commands take: which service, how to print, whether to wait."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from service.cli.failures import UsageError
from service.cli.output import say
from service.client import PATIENCE_S, Client, Failure
from service.settings import ClientSettings, Settings, unknown_variables

Json = Annotated[bool, Parameter(negative=(), show_default=False, help="Print JSON, as the service sent it")]
ServiceSettings = Annotated[Settings | None, Parameter(name="*")]
JobId = Annotated[str, Parameter(name="ID")]
MANY = Parameter(negative=(), show_default=False)
Output = Annotated[
    Path | None,
    Parameter(name=("--output", "-o"), help="Write the result to this file"),
]
Wait = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Wait for the end of the job and show its progress")
]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Which service to talk to, and how to print what it says."""

    settings: Annotated[ClientSettings | None, Parameter(name="*")] = None
    json: Json = False

    @contextlib.asynccontextmanager
    async def client(
        self, *, patience_s: float = PATIENCE_S, on_trouble: Callable[[Failure | None], None] | None = None
    ) -> AsyncIterator[Client]:
        """A client of it (see there); `UsageError` when the address or the key is none."""
        settings = self.settings or ClientSettings()
        if not (settings.api_key or "").isprintable():
            raise UsageError(
                "--api-key (JOBSERVICE_API_KEY): there is a line break or the like in it, and none in a key."
            )
        try:
            client = Client(settings.url, settings.api_key, patience_s=patience_s, on_trouble=on_trouble)
        except ValueError as error:
            raise UsageError(f"--url (JOBSERVICE_URL): {error}") from error
        async with client:
            yield client


def warn_of_unknown_settings() -> None:
    """Say which variables are taken for settings by nobody but who wrote them."""
    for variable, meant in unknown_variables().items():
        say(f"{variable} is no setting and has no effect." + (f" Is {meant} meant?" if meant else ""), style="yellow")
