"""What the database stands on: whether it takes writes now, and in one line why not and what to do."""

from __future__ import annotations

import dataclasses
import enum

import structlog

from service.errors import ServiceUnavailableError

log = structlog.get_logger(__name__)


class Healing(enum.Enum):
    """How a fault ends."""

    BY_ITSELF = enum.auto()  # a probe that commits tells
    BY_RESTART = enum.auto()  # what was damaged has to be looked at first
    NEVER = enum.auto()  # nothing that this process writes can be trusted any more: it must end at once


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why the whole database takes no writes. `reason` is fit for clients: what happened, where, and what to do."""

    kind: str
    reason: str
    healing: Healing = Healing.BY_ITSELF


class AwayError(ServiceUnavailableError):
    """The whole database takes no statements now, for `fault`; what was asked has not happened."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


class Ground:
    """The fault that holds now, if any, and warnings about what may become one; each is logged as it comes and goes."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self._warnings: dict[str, str] = {}
        self._no_intake: str | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people should know although the service works."""
        return tuple(self._warnings.values())

    def check(self) -> None:
        """Raise `AwayError` while a fault holds."""
        if self.fault is not None:
            raise AwayError(self.fault)

    def check_intake(self) -> None:
        """Raise `ServiceUnavailableError` while there is no room for new jobs; what is there goes on."""
        if self._no_intake is not None:
            raise ServiceUnavailableError(self._no_intake)

    def refuse_intake(self, reason: str | None) -> None:
        """Take no new jobs for `reason`; None takes them again."""
        if (reason is None) != (self._no_intake is None):
            log.warning("new jobs refused" if reason else "new jobs taken again", reason=reason)
        self._no_intake = reason

    def fall(self, fault: Fault) -> None:
        """A fault holds from now on."""
        if self.fault is None or self.fault.kind != fault.kind:
            log.error("database away", fault=fault.kind, reason=fault.reason)
        self.fault = fault

    def rise(self) -> None:
        """Writes go through again."""
        if self.fault is not None:
            log.warning("database back", fault=self.fault.kind)
            self.fault = None

    def warn(self, kind: str, text: str | None) -> None:
        """Say `text` as long as it is true; None takes it back."""
        if text is None:
            if self._warnings.pop(kind, None) is not None:
                log.info("database warning over", warning=kind)
        else:
            if kind not in self._warnings:
                log.warning("database warning", warning=kind, text=text)
            self._warnings[kind] = text
