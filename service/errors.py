"""The one error tree, and the error object that jobs, pairs and HTTP share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.models import ErrorType, JobStatus, Timestamp, timestamp

MAX_MESSAGE_CHARS = 8_192


@dataclasses.dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one place of a document; `pointer` is a JSON Pointer (RFC 6901), empty for the whole."""

    pointer: str
    message: str


class ServiceError(Exception):
    """Everything this service raises on purpose. Carries ids as attributes; its text is fit for a client."""


class JobNotFoundError(ServiceError, LookupError):
    """No such job, or not this tenant's."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id}.")
        self.job_id = job_id


class FileNotInJobError(ServiceError, LookupError):
    """The job has no artifact, or no bytes, of that name."""

    def __init__(self, job_id: str, name: str) -> None:
        super().__init__(f"Job {job_id} has no file {name!r}.")
        self.job_id = job_id
        self.name = name


class BytesGoneError(ServiceError):
    """There were bytes, and they were kept for as long as the service keeps them."""


class BytesLostError(BytesGoneError):
    """There should be bytes, but the file that held them is not where the service put it."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"The bytes {sha256} are lost: the service has no file of them any more. Send them again.")
        self.sha256 = sha256


class EventNotFoundError(ServiceError, LookupError):
    """Nobody can resume behind an event that has not happened."""


class ReportWindowOpenError(ServiceError):
    """The window of a report ends after `latest`, and more may still come into it; None before there is any report."""

    def __init__(self, latest: Timestamp | None) -> None:
        end = "nothing was counted yet" if latest is None else f"more may come after {latest}"
        super().__init__(f"The window is not over: {end}.")
        self.problem = FieldProblem("/until", "must not be later than the reports are")
        self.retry_after_s = 1


class PluginNotFoundError(ServiceError, LookupError):
    """No plugin of that name is installed."""

    def __init__(self, plugin: str) -> None:
        super().__init__(f"No plugin {plugin!r} is installed.")
        self.plugin = plugin


class PluginUnavailableError(ServiceError):
    """The plugin is installed but cannot take work now; `reason` says why and what to do.

    `retry_after_s` is None where waiting does not help.
    """

    def __init__(self, plugin: str, reason: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(f"Plugin {plugin!r} is not available: {reason}")
        self.plugin = plugin
        self.reason = reason
        self.retry_after_s = retry_after_s


class PluginLoadError(ServiceError):
    """A plugin could not be imported, made or described in a worker; `error_type` tells by whose fault."""

    def __init__(
        self,
        plugin: str,
        error_type: ErrorType,
        reason: str,
        *,
        details: Mapping[str, Any] | None = None,
        traceback: str | None = None,
    ) -> None:
        super().__init__(f"Plugin {plugin!r} cannot be loaded: {reason}")
        self.plugin = plugin
        self.error_type = error_type
        self.reason = reason
        self.details = dict(details or {})
        self.traceback = traceback  # for administrators


class PluginDefinitionError(ServiceError):
    """A plugin breaks the contract: its attributes, its `run` or its annotations; the text says what to change."""


class InputInvalidError(ServiceError):
    """Raised in a worker: the payload does not become the arguments of `run`."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__("; ".join(f"{problem.pointer or 'The payload'}: {problem.message}" for problem in problems))
        self.problems = tuple(problems)


class OutputInvalidError(ServiceError):
    """Raised in a worker: what `run` returned is not a document; `pointer` (RFC 6901) names the place."""

    def __init__(self, message: str, pointer: str) -> None:
        super().__init__(f"{pointer or 'The result'}: {message}")
        self.message = message
        self.pointer = pointer


class JobCancelledError(BaseException):
    """Raised by `context.check_cancelled()`; no `Exception`, so that a plugin's `except Exception` lets it through."""


class PayloadInvalidError(ServiceError):
    """The payload does not fit the plugin's input; nothing was recorded."""

    def __init__(self, plugin: str, problems: Sequence[FieldProblem]) -> None:
        super().__init__(f"The payload does not fit plugin {plugin!r}.")
        self.plugin = plugin
        self.problems = tuple(problems)


#: What is wrong with a field, where a client may have to say it in other words.
NOT_A_FIELD: Final = "is not a field of this plugin"
BODY_AND_PARAMETER: Final = "is the body and a query parameter"


class NotStorableError(ServiceError, ValueError):
    """A value that not every database holds as JSON: NaN, U+0000, a lone surrogate, a huge number, depth."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer or 'The document'}: {message}")
        self.problem = FieldProblem(pointer, message)


class IdempotencyConflictError(ServiceError):
    """The key was used before with another request."""

    def __init__(self, key: str) -> None:
        super().__init__("This Idempotency-Key was used before with a different request.")
        self.key = key


class JobIdReusedError(ServiceError):
    """The id that was chosen for a job is taken, by another request or by another job."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"The id {job_id} is taken by a different request: choose a new one.")
        self.job_id = job_id


class BatchNotFoundError(ServiceError, LookupError):
    """No such batch, or not this tenant's."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"There is no batch {batch_id}.")
        self.batch_id = batch_id


class JobStateError(ServiceError):
    """The job is not in a state that allows what was asked."""

    def __init__(self, job_id: str, status: JobStatus, asked: str) -> None:
        super().__init__(f"Job {job_id} is {status}: it cannot be {asked}.")
        self.job_id = job_id
        self.status = status


class ServiceUnavailableError(ServiceError):
    """The service cannot take this now (draining, database away); nothing was recorded, as far as is known.

    `retry_after_s` is None where waiting does not help.
    """

    def __init__(self, reason: str, *, retry_after_s: int | None = 5) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class QueueFullError(ServiceError):
    """As many jobs wait as may; nothing was recorded."""

    def __init__(self, where: str, waiting: int, most: int, *, retry_after_s: int) -> None:
        super().__init__(f"The queue is full: {waiting} jobs {where} wait, and {most} may. Try again later.")
        self.retry_after_s: int | None = retry_after_s


class TooManyAtOnceError(QueueFullError):
    """More jobs at once than may ever wait, so waiting does not help; nothing was recorded."""

    def __init__(self, where: str, count: int, most: int) -> None:
        ServiceError.__init__(self, f"These are {count} jobs {where}, and {most} may wait: send fewer at once.")
        self.retry_after_s = None


class TooManyStreamsError(ServiceError):
    """As many streams of events are open as may be."""

    def __init__(self, whose: str, most: int, *, retry_after_s: int) -> None:
        super().__init__(f"{whose} may have {most} streams open at once. Close one, or try again later.")
        self.retry_after_s = retry_after_s


class ScheduleInvalidError(ServiceError, ValueError):
    """A schedule cannot be followed as it was described; `problem` names the field."""

    def __init__(self, problem: FieldProblem) -> None:
        super().__init__(f"{problem.pointer or 'The schedule'}: {problem.message}")
        self.problem = problem


class ScheduleNotFoundError(ServiceError, LookupError):
    """No such schedule, or not this tenant's."""

    def __init__(self, schedule_id: str) -> None:
        super().__init__(f"There is no schedule {schedule_id}.")
        self.schedule_id = schedule_id


class FileNotInScheduleError(ServiceError, LookupError):
    """The payload of the schedule has no bytes at that pointer."""

    def __init__(self, schedule_id: str, pointer: str) -> None:
        super().__init__(f"Schedule {schedule_id} has no file {pointer!r}.")
        self.schedule_id = schedule_id
        self.pointer = pointer


class ScheduleExistsError(ServiceError):
    """The tenant has a schedule of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is a schedule {name!r} already.")


class TooManySchedulesError(ServiceError):
    """The tenant has as many schedules as it may."""

    def __init__(self, most: int) -> None:
        super().__init__(f"There are {most} schedules, and no more may be: delete one first.")


class PluginPausedError(ServiceError):
    """An operator has paused the plugin, new jobs included; nothing was recorded."""

    def __init__(self, plugin: str, reason: str | None) -> None:
        super().__init__(f"Plugin {plugin!r} is paused and takes no jobs{f': {reason}' if reason else '.'}")
        self.plugin = plugin


class KeyNotFoundError(ServiceError, LookupError):
    """There is no API key that is named so."""

    def __init__(self, prefix: str) -> None:
        super().__init__(
            f"There is no API key {prefix!r}. A key is named by `jsk_` and all twelve digits behind it: "
            "`jobservice keys list` shows them."
        )


class InvalidKeyError(ServiceError, ValueError):
    """An API key cannot be made as it was asked for; the text says why."""


class WebhookNotFoundError(ServiceError, LookupError):
    """No such webhook, or not this tenant's."""

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"There is no webhook {webhook_id}.")
        self.webhook_id = webhook_id


class DeliveryNotFoundError(ServiceError, LookupError):
    """The webhook has no such delivery."""

    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"There is no delivery {delivery_id} of this webhook.")
        self.delivery_id = delivery_id


class WebhookUrlError(ServiceError, ValueError):
    """Nothing may be sent to a URL, which stands at `pointer` of what was asked."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer}: {message}")
        self.problem = FieldProblem(pointer, message)


class WebhookStateError(ServiceError):
    """The webhook is not in a state that allows what was asked; the text says why."""


class SettingsFileError(ServiceError):
    """A file of settings cannot be read; the text names it and the place in it."""


class StartupError(ServiceError):
    """The service cannot start; the text is the one line that says why and what to do."""


class DatabaseInUseError(StartupError):
    """Another process has the one lock on an SQLite database."""


def raised(message: str, exception: str | None) -> str:
    """What an exception said, behind the name of its class: a `KeyError` says no more than its key.

    None stands for what was not raised, whose message says it all.
    """
    is_named = exception is None or message.partition(" ")[0].rstrip(":") == exception
    return message if is_named else f"{exception}: {message}"


def error_object(
    error_type: ErrorType | str, message: str, *, plugin: str | None, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The inner error object `{type, message, plugin, details, timestamp}`; the message is never empty, and capped."""
    text = message.strip() or str(error_type)
    if len(text) > MAX_MESSAGE_CHARS:
        text = text[: MAX_MESSAGE_CHARS - 1] + "…"
    return {
        "type": str(error_type),
        "message": text,
        "plugin": plugin,
        "details": dict(details or {}),
        "timestamp": timestamp(),
    }
