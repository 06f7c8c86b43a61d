"""One worker process as the service sees it: its channel, its clocks, its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeGuard

import structlog

from service.calls import Call
from service.codec import check_document
from service.errors import FieldProblem, NotStorableError
from service.models import Artifact
from service.plugins.manifest import PluginManifest, PluginSource
from service.tool_runner import processes
from service.tool_runner.executor import MB, Ceilings, Failure, Incident, Limits, Outcome, Phase
from service.tool_runner.frames import Frame, FrameDecoder, FrameError, Kind, document, pack, parse
from service.tool_runner.launch import Child
from service.tool_runner.sampler import TAIL_BYTES, Sampler, Watched, tail

#: How long a cancelled plugin has to notice it before it is killed, and an idle one for its teardown.
CANCEL_GRACE_S: Final = 0.5
TEARDOWN_GRACE_S: Final = 2.0
PROGRESS_EVERY_S: Final = 0.1

MAX_METRICS: Final = 1_000
MAX_ARTIFACTS: Final = 1_000
MAX_NAME_CHARS: Final = 200
MAX_MESSAGE_CHARS: Final = 500

_READ_SIZE: Final = 131_072
_WRITE_SIZE: Final = 1_048_576
#: A header up to this size is decoded on the event loop.
_SMALL: Final = 65_536

log = structlog.get_logger(__name__)


class WorkerProcess:
    """Owns one child until it is dead and buried. One exchange at a time. To be used on the event loop alone."""

    def __init__(
        self, child: Child, source: PluginSource, ceilings: Ceilings, sampler: Sampler, undertakers: ThreadPoolExecutor
    ) -> None:
        self.source = source
        self.manifest: PluginManifest | None = None
        self.is_fit = False  # for another call
        self._child = child
        self._ceilings = ceilings
        self._sampler = sampler
        self._undertakers = undertakers
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder(ceilings.result_bytes)
        self._unsent: deque[memoryview] = deque()
        self._phase = Phase.IMPORT
        self._has_teardown = False
        self._cpu_mark = 0.0
        self._output_mark = 0
        self._call: Call | None = None
        self._limits: Limits | None = None
        self._limit_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._answer: asyncio.Future[Frame | Failure] | None = None
        self._received = 0
        self._news: Frame | None = None
        self._news_timer: asyncio.TimerHandle | None = None
        self._news_at = 0.0
        self._end: Failure | None = None
        self._killing: asyncio.Future[None] | None = None
        self._is_dead = False
        self._cpu_total = 0.0
        self._last_output = b""
        self._output_lock = threading.Lock()
        self._is_cleared = False
        self._burial: asyncio.Task[None] | None = None
        self._handlers: dict[Kind, Callable[[Frame], None]] = {
            Kind.MANIFEST: self._on_answer,
            Kind.REPLY: self._on_answer,
            Kind.READY: self._on_ready,
            Kind.PROGRESS: self._on_progress,
            Kind.METRIC: self._on_metric,
            Kind.ARTIFACT: self._on_artifact,
        }
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.watched = Watched(child.process.pid, child.output, self._on_excess)
        self.watched.limit_bytes = ceilings.memory_bytes
        sampler.watch(self.watched)
        self._loop.add_reader(child.pidfd, self._on_death)
        self._loop.add_reader(child.connection, self._on_readable)

    @property
    def pid(self) -> int:
        """Of the process, which also names its session and group."""
        return self._child.process.pid

    # --- what the pool asks for ---

    async def load(self, limit_s: float) -> PluginManifest | Failure:
        """Have the plugin imported and described, the first thing to ask of a worker."""
        hello = {
            "source": {
                "name": self.source.name,
                "value": self.source.value,
                "distribution": self.source.distribution,
                "distribution_version": self.source.distribution_version,
            },
            "sys_path": [os.path.abspath(path) for path in sys.path],  # noqa: ASYNC240, PTH100  # '' is the folder
            "folder": str(self._child.folder),
            "memory_bytes": self._ceilings.memory_bytes,
            "result_bytes": self._ceilings.result_bytes,
        }
        answer = await self._ask(pack(Kind.HELLO, hello), limit_s)
        if isinstance(answer, Failure):
            return answer
        try:
            said = parse(answer)
            if answer.kind is Kind.REPLY:
                return self._failure_of(said)
            self.manifest = _manifest_of(said, self.source)
            self._has_teardown = said.get("teardown") is True
        except FrameError as error:
            return await self._broken(error)
        self._phase = Phase.SETUP
        self.is_fit = True
        return self.manifest

    async def execute(self, payload: dict[str, Any], call: Call, limits: Limits) -> Outcome:
        """Have one payload executed. When it returns or raises, the plugin has stopped; `call.report` is filled."""
        report = call.report
        report.worker_pid = self.pid
        report.plugin_version = None if self.manifest is None else self.manifest.version
        header = {"job_id": call.job_id, "attempt": call.attempt, "timeout_s": limits.run_s, "payload": payload}
        try:
            request = pack(Kind.CALL, header)
            if len(request[0]) <= _SMALL:
                check_document(payload)
            else:
                await asyncio.to_thread(check_document, payload)
        except FrameError as error:
            return Failure(incident=Incident.REFUSED, message=f"The payload cannot be passed on: {error}.")
        except NotStorableError as error:
            return Failure(incident=Incident.REFUSED, message=str(error), problems=[error.problem])
        self._call, self._limits, self._received = call, limits, 0
        self.watched.limit_bytes = limits.memory_bytes
        self.watched.peak_bytes = 0
        self._output_mark = os.fstat(self._child.output).st_size
        self.watched.rotated = b""
        started = self._loop.time()
        self.is_fit = False
        try:
            answer = await self._ask(request, limits.setup_s if self._phase is Phase.SETUP else limits.run_s)
            if isinstance(answer, Failure):
                return answer
            try:
                return await self._outcome(answer, call)
            except FrameError as error:
                return await self._broken(error)
        finally:
            self._flush_news()
            self._call = None
            self.watched.limit_bytes = self._ceilings.memory_bytes
            if report.run_s is None and self._phase is Phase.RUN:
                report.run_s = self._loop.time() - started
            if report.cpu_s is None and self._is_dead:
                report.cpu_s = max(self._cpu_total - self._cpu_mark, 0.0)
            report.peak_memory_bytes = max(report.peak_memory_bytes or 0, self.watched.peak_bytes) or None
            report.output = await self._output()

    async def retire(self) -> None:
        """End an idle worker, its teardown first; returns when it is gone with all it started."""
        self.is_fit = False
        if self._has_teardown and self._phase is Phase.RUN and not self._is_dead and self._end is None:
            with suppress(OSError):
                self._child.connection.shutdown(socket.SHUT_WR)
            await asyncio.wait([self.gone], timeout=TEARDOWN_GRACE_S)
        self.kill(Failure(incident=Incident.HOST, message="The worker was retired."))
        await asyncio.wait([self.gone])

    def kill(self, why: Failure) -> None:
        """Begin to kill the worker with all it started; `why` becomes the answer of what it executes."""
        if self._end is None and not self._is_dead:
            self._end = why
            self.is_fit = False
            self._killing = self._loop.run_in_executor(
                self._undertakers, processes.kill_family, self.pid, self._child.pidfd, self._child.marker
            )

    # --- one exchange ---

    async def _ask(self, buffers: Sequence[bytes], limit_s: float) -> Frame | Failure:
        """Send a frame and wait for the one that answers it; on cancellation, until the plugin has stopped."""
        if self._is_dead or self._end is not None:
            await asyncio.wait([self.gone])
            return self._end or self._crash()
        answer: asyncio.Future[Frame | Failure] = self._loop.create_future()
        self._answer = answer
        self._arm(limit_s)
        self._send(buffers)
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.cancelled():
                await settle(self._stop())
            raise
        finally:
            self._disarm()
            self._answer = None

    async def _stop(self) -> None:
        """Ask the running call to end; kill the worker if it does not."""
        if self._phase is not Phase.IMPORT and self._end is None and not self._is_dead:
            self._answer = self._loop.create_future()
            self._send(pack(Kind.CANCEL, {}))
            await asyncio.wait([self._answer], timeout=CANCEL_GRACE_S)
            if self._answer.done() and isinstance(frame := self._answer.result(), Frame):
                with suppress(FrameError):
                    self._measure(parse(frame))
        if not self.is_fit:
            self.kill(Failure(incident=Incident.HOST, message="The call was cancelled."))
            await asyncio.wait([self.gone])

    def _arm(self, limit_s: float) -> None:
        self._disarm()
        self._limit_s = limit_s
        self._timer = self._loop.call_later(limit_s, self._on_time_over)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _resolve(self, answer: Frame | Failure) -> None:
        self._disarm()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    async def _broken(self, error: FrameError) -> Failure:
        """The worker broke the protocol: kill it."""
        self.kill(_protocol(str(error)))
        await settle(_wait(self.gone))
        return self._end or _protocol(str(error))

    async def _outcome(self, frame: Frame, call: Call) -> Outcome:
        if len(frame.header) <= _SMALL:
            reply, result = _decoded(frame)
        else:
            reply, result = await asyncio.to_thread(_decoded, frame)
        self._measure(reply)
        return self._failure_of(reply) if result is None else result

    def _measure(self, reply: dict[str, Any]) -> None:
        """Take over what the worker measured and whether it is fit for another call."""
        if self._call is not None:
            report = self._call.report
            report.run_s = _number(reply.get("run_s"))
            report.peak_memory_bytes = int(_number(reply.get("peak_bytes")) or 0)
            if (cpu_s := _number(reply.get("cpu_s"))) is not None:
                report.cpu_s = max(cpu_s - self._cpu_mark, 0.0)
                self._cpu_mark = cpu_s
        self.is_fit = reply.get("is_fit") is True and self._end is None and not self._is_dead

    def _failure_of(self, reply: dict[str, Any]) -> Failure:
        """What went wrong, as the worker tells it."""
        try:
            incident = Incident(reply["incident"])
            message, exception = str(reply["message"]), str(reply["exception"])
            problems = [FieldProblem(str(pointer), str(text)) for pointer, text in reply.get("problems") or ()]
        except (KeyError, TypeError, ValueError):
            raise FrameError("the reply is neither a result nor a failure") from None
        details: dict[str, Any] = {}
        if incident in (Incident.IMPORT, Incident.SETUP, Incident.RAISED, Incident.MEMORY):
            details["exception"] = exception
        if incident in (Incident.IMPORT, Incident.SETUP):
            details["phase"] = str(incident)
        if incident is Incident.OUTPUT:
            details["pointer"] = str(reply.get("pointer") or "")
        if incident is Incident.MEMORY:
            message = f"{message} (no memory was left to allocate)"
            details |= {"phase": str(self._phase), "limit_mb": self._memory_limit() / MB}
        traceback, retryable = reply.get("traceback"), reply.get("retryable")
        retry_after_s = _number(reply.get("retry_after_s"))
        return Failure(
            incident=incident,
            message=message,
            details=details,
            problems=problems,
            traceback=traceback if isinstance(traceback, str) else None,
            retryable=retryable if isinstance(retryable, bool) else None,
            retry_after_s=None if retry_after_s is None else max(0.0, retry_after_s),
        )

    async def _output(self) -> str | None:
        """The tail of what was printed since the call began."""
        if self._is_dead:
            await settle(_wait(self.gone))
            printed = self._last_output
        else:
            if not self.watched.rotated and os.fstat(self._child.output).st_size <= self._output_mark:
                return None
            printed = await asyncio.to_thread(self._printed)
        return printed[-TAIL_BYTES:].decode("utf-8", "replace").replace("\0", "") or None

    def _printed(self) -> bytes:
        with self._output_lock:
            if self._is_cleared:  # its number may be another file's by now
                return self._last_output
            rotated = self.watched.rotated
            return rotated + tail(self._child.output, 0 if rotated else self._output_mark)

    # --- the channel ---

    def _send(self, buffers: Sequence[bytes]) -> None:
        self._unsent += map(memoryview, buffers)
        self._on_writable()

    def _on_writable(self) -> None:
        """Write what the socket takes now; the loop calls again for the rest. Nothing is copied on the way."""
        connection = self._child.connection
        while self._unsent:
            view = self._unsent[0]
            try:
                sent = connection.send(view[:_WRITE_SIZE])
            except BlockingIOError:
                self._loop.add_writer(connection, self._on_writable)
                return
            except OSError:
                break  # the other end is closed: reading tells
            if sent == len(view):
                self._unsent.popleft()
            else:
                self._unsent[0] = view[sent:]
        self._unsent.clear()
        self._loop.remove_writer(connection)

    def _on_readable(self) -> None:
        try:
            data = self._child.connection.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._loop.remove_reader(self._child.connection)
            if self.is_fit or self._answer is not None:
                # Its death, if it is that, is known in a moment and tells more.
                self._loop.call_later(0.1, self.kill, _protocol("it closed its channel"))
            self.is_fit = False

    def _take(self, data: bytes) -> None:
        if self._end is not None:
            return
        try:
            for frame in self._decoder.feed(data):
                handle = self._handlers.get(frame.kind)
                if handle is None:
                    raise FrameError(f"a worker must not send {frame.kind.name}")
                handle(frame)
        except FrameError as error:
            self.kill(_protocol(str(error)))

    def _on_answer(self, frame: Frame) -> None:
        if self._answer is None or self._answer.done():
            raise FrameError("an answer that nothing asked for")
        if (frame.kind is Kind.MANIFEST) and self._phase is not Phase.IMPORT:
            raise FrameError("a manifest in place of a reply")
        if self._received + frame.size > self._ceilings.result_bytes + _SMALL:
            raise FrameError("result and artifacts are larger than this service accepts")
        self._flush_news()
        self._resolve(frame)

    def _on_ready(self, frame: Frame) -> None:
        if self._phase is not Phase.SETUP or self._limits is None:
            raise FrameError("set-up ended twice")
        self._phase = Phase.RUN
        self._cpu_mark = _number(parse(frame).get("cpu_s")) or 0.0
        if self._timer is not None:
            self._arm(self._limits.run_s)

    def _on_progress(self, frame: Frame) -> None:
        if frame.size > _SMALL:
            raise FrameError("progress is too large")
        self._news = frame
        if self._news_timer is None:
            wait = self._news_at + PROGRESS_EVERY_S - self._loop.time()
            if wait <= 0:
                self._flush_news()
            else:
                self._news_timer = self._loop.call_later(wait, self._flush_news)

    def _flush_news(self) -> None:
        """Hand the newest progress on."""
        if self._news_timer is not None:
            self._news_timer.cancel()
            self._news_timer = None
        frame, self._news = self._news, None
        if frame is None or self._call is None:
            return
        self._news_at = self._loop.time()
        try:
            said = parse(frame)
        except FrameError as error:
            self.kill(_protocol(str(error)))
            return
        fraction, message = _number(said.get("fraction")), said.get("message")
        if fraction is None or not 0 <= fraction <= 1 or not isinstance(message, str):
            self.kill(_protocol("progress must be a fraction in 0..1 and a text"))
            return
        try:
            self._call.on_progress(fraction, message[:MAX_MESSAGE_CHARS])
        except Exception:
            log.exception("progress was not taken", job_id=self._call.job_id)

    def _on_metric(self, frame: Frame) -> None:
        said = parse(frame) if frame.size <= _SMALL else {}
        name, value = said.get("name"), _number(said.get("value"))
        if self._call is None:
            return
        metrics = self._call.report.metrics
        if not _is_name(name) or value is None:
            raise FrameError("a metric must have a name and a number")
        if len(metrics) < MAX_METRICS or name in metrics:
            metrics[name] = value

    def _on_artifact(self, frame: Frame) -> None:
        said = parse(frame) if len(frame.header) <= _SMALL else {}
        name, media_type = said.get("name"), said.get("media_type")
        if self._call is None:
            return
        artifacts = self._call.report.artifacts
        if not _is_name(name) or not isinstance(media_type, str) or len(frame.attachments) != 1:
            raise FrameError("an artifact must have a name, a media type and content")
        self._received += frame.size
        if self._received > self._ceilings.result_bytes + _SMALL or len(artifacts) >= MAX_ARTIFACTS:
            raise FrameError("artifacts are larger than this service accepts")
        artifacts.append(Artifact(name=name, data=frame.attachments[0], media_type=media_type[:MAX_NAME_CHARS]))

    # --- its end ---

    def _memory_limit(self) -> int:
        return self._ceilings.memory_bytes if self._limits is None else self._limits.memory_bytes

    def _on_time_over(self) -> None:
        phase = str(self._phase)
        what = {Phase.IMPORT: "Its import", Phase.SETUP: "Its set-up", Phase.RUN: "It"}[self._phase]
        self.kill(
            Failure(
                incident=Incident.TIME,
                message=f"{what} took longer than {self._limit_s:g} s.",
                details={"limit_s": self._limit_s, "phase": phase},
            )
        )

    def _on_excess(self, resident: int) -> None:
        """Called in the sampler's thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._kill_for_memory, resident)

    def _kill_for_memory(self, resident: int) -> None:
        limit = self._memory_limit()
        self.kill(
            Failure(
                incident=Incident.MEMORY,
                message=f"It took {resident / MB:.0f} MB of memory, more than {limit / MB:g} MB.",
                details={"limit_mb": limit / MB, "peak_mb": round(resident / MB, 1), "phase": str(self._phase)},
            )
        )

    def _on_death(self) -> None:
        """The process is a zombie: read what it had sent, then bury it."""
        self._loop.remove_reader(self._child.pidfd)
        with suppress(OSError):
            while data := self._child.connection.recv(_READ_SIZE):
                self._take(data)
        self._is_dead = True
        self.is_fit = False
        self._disarm()
        self._loop.remove_reader(self._child.connection)
        self._loop.remove_writer(self._child.connection)
        self._burial = self._loop.create_task(self._bury())

    async def _bury(self) -> None:
        try:
            if self._killing is not None:
                await self._killing
            status = await self._loop.run_in_executor(self._undertakers, self._clear_away)
            if self._end is None:
                self._end = self._crash(status)
        except Exception:
            log.exception("a dead worker could not be cleared away", worker_pid=self.pid)
        finally:
            self.gone.set_result(None)
            self._resolve(self._end or self._crash())

    def _clear_away(self) -> int:
        """In a thread: kill what is left of it, reap it, close and remove what it used; its exit status."""
        child = self._child
        # Until the process is reaped its id is nobody else's, and so is the id of its session.
        processes.kill_family(child.process.pid, child.pidfd, child.marker)
        _, status, usage = os.wait4(child.process.pid, 0)
        child.process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_total = usage.ru_utime + usage.ru_stime
        self._sampler.forget(self.watched)
        self._last_output = self._printed()
        with self._output_lock:
            self._is_cleared = True
            os.close(child.output)
        child.connection.close()
        os.close(child.pidfd)
        shutil.rmtree(child.folder, ignore_errors=True)
        return child.process.returncode

    def _crash(self, status: int | None = None) -> Failure:
        details: dict[str, Any] = {"phase": str(self._phase)}
        if status is None:
            how = "was lost"
        elif status < 0:
            name = _signal_name(-status)
            details["signal"] = name
            how = f"was killed by {name}"
        else:
            details["exit_code"] = status
            how = f"ended with exit code {status}"
        return Failure(
            incident=Incident.CRASH, message=f"Its worker process {how} before it answered.", details=details
        )


async def settle(work: Coroutine[Any, Any, None]) -> None:
    """Carry `work` to its end even where the awaiting task is cancelled meanwhile; raises `CancelledError` then."""
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            is_cancelled = True
    task.result()
    if is_cancelled:
        raise asyncio.CancelledError


async def _wait(future: asyncio.Future[None]) -> None:
    await asyncio.wait([future])


def _decoded(frame: Frame) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The reply, and the result in it if there is one."""
    reply = parse(frame)
    return reply, document(reply["result"], frame.attachments) if "result" in reply else None


def _protocol(how: str) -> Failure:
    message = f"Its worker process broke the protocol: {how}."
    return Failure(incident=Incident.PROTOCOL, message=message, details={"reason": "protocol"})


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) else None


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_MANIFEST_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "name": (str,),
    "version": (str,),
    "description": (str,),
    "input_schema": (dict,),
    "output_schema": (dict, type(None)),
    "untyped": (bool,),
    "timeout_s": (int, float, type(None)),
    "setup_timeout_s": (int, float, type(None)),
    "memory_mb": (int, float, type(None)),
    "concurrency": (int, type(None)),
    "max_attempts": (int, type(None)),
    "short": (bool,),
}


def _manifest_of(said: dict[str, Any], source: PluginSource) -> PluginManifest:
    fields = said.get("manifest")
    if not isinstance(fields, dict) or fields.keys() != _MANIFEST_TYPES.keys() or fields["name"] != source.name:
        raise FrameError("the manifest is not one")
    for name, types in _MANIFEST_TYPES.items():
        if type(fields[name]) not in types:
            raise FrameError(f"{name} in the manifest is not what it must be")
    return PluginManifest(**fields)
