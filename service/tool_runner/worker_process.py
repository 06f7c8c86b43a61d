"""One worker process as the service sees it: the calls it is sent, their clocks and limits, its end."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import structlog

from service.calls import Call, CallReport
from service.codec import check_document
from service.errors import NotStorableError
from service.plugins.discovery import as_installed_now
from service.plugins.manifest import PluginManifest, PluginSource
from service.tool_runner import folders, processes
from service.tool_runner.channel import Channel
from service.tool_runner.executor import MB, Ceilings, Failure, Incident, Limits, Outcome, Phase
from service.tool_runner.frames import Frame, FrameError, Kind, pack, parse
from service.tool_runner.launch import Child
from service.tool_runner.output import TAIL_BYTES, Output
from service.tool_runner.replies import (
    SMALL,
    artifact_of,
    failure_of,
    manifest_of,
    measured,
    metric_of,
    number_of,
    progress_of,
    reply_of,
    span_of,
)
from service.tool_runner.sampler import Sampler, Watched

#: How long a cancelled plugin has to notice it before it is killed, an idle one for its teardown, and one that hung up
#: to be dead.
CANCEL_GRACE_S: Final = 0.5
TEARDOWN_GRACE_S: Final = 2.0
HANGUP_GRACE_S: Final = 0.5
PROGRESS_EVERY_S: Final = 0.1

#: More than any machine has, and few enough to be written down.
_MOST_MEMORY_BYTES: Final = 2**50
_CORES: Final = os.cpu_count() or 1

MAX_METRICS: Final = 1_000
MAX_ARTIFACTS: Final = 1_000
#: Of a reply beside result and artifacts: a message and a traceback as long as a worker sends them fit.
MAX_REPLY_BYTES: Final = 500_000

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True, eq=False)
class _Exchange:
    """A frame for the worker, until there is one that answers it. The first in line is the one it works on.

    `answer` is None where the worker ended before it came to it; `last_word` is the same for a cancelled one.
    """

    number: int
    limit_s: float
    answer: asyncio.Future[Frame | Failure | None]
    call: Call | None = None  # None to load the plugin
    limits: Limits | None = None
    last_word: Frame | Failure | None = None
    is_cancelled: bool = False
    began: float | None = None  # on the event loop's clock
    emptied: int = 0  # how often the output was emptied before
    before_emptied: bytes = b""  # what the output held when it was emptied meanwhile
    peak_bytes: int = 0  # of memory, as seen from here
    received: int = 0  # bytes of artifacts


class WorkerProcess:
    """Owns one child until it is dead and buried. To be used on the event loop alone.

    It takes the calls that it is sent one after the other; see `takes_more`.
    """

    def __init__(
        self, child: Child, source: PluginSource, ceilings: Ceilings, sampler: Sampler, undertakers: ThreadPoolExecutor
    ) -> None:
        self.source = source
        self.manifest: PluginManifest | None = None
        self.is_fit = False  # for another call, once it has no more
        self._child = child
        self._ceilings = ceilings
        self._sampler = sampler
        self._undertakers = undertakers
        self._loop = asyncio.get_running_loop()
        self._phase = Phase.IMPORT
        self._pid: int | None = None  # until it has said it
        self._keeper_cpu_s = 0.0
        self._has_teardown = False
        self._cpu_s = 0.0  # taken until the last reply
        self._cpu_total = 0.0  # once it is gone
        self._printed = 0  # how much of its output belongs to calls that are over
        self._line: deque[_Exchange] = deque()
        self._asked = 0
        self._limit_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._news: Frame | None = None
        self._news_timer: asyncio.TimerHandle | None = None
        self._news_at = 0.0
        self._end: Failure | None = None
        self._killing: asyncio.Future[None] | None = None
        self._is_dead = False
        self._burial: asyncio.Task[None] | None = None
        self._handlers: dict[Kind, Callable[[Frame], None]] = {
            Kind.STARTED: self._on_started,
            Kind.MANIFEST: self._on_answer,
            Kind.REPLY: self._on_answer,
            Kind.LAST_REPLY: self._on_answer,
            Kind.READY: self._on_ready,
            Kind.PROGRESS: self._on_progress,
            Kind.METRIC: self._on_metric,
            Kind.ARTIFACT: self._on_artifact,
        }
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._output = Output(child.output)
        self.watched = Watched(child.process.pid, self._output, self._on_excess)
        self.watched.limit_bytes = ceilings.memory_bytes
        sampler.watch(self.watched)
        self._loop.add_reader(child.pidfd, self._on_death)
        self._channel = Channel(
            child.connection,
            ceilings.result_bytes,
            on_frame=self._on_frame,
            on_broken=lambda error: self.kill(_protocol(str(error))),
            on_hangup=self._on_hangup,
        )

    @property
    def pid(self) -> int:
        """Of the worker, which also names its session and group; of its keeper until there is one."""
        return self._pid or self._child.process.pid

    @property
    def takes_more(self) -> bool:
        """Whether calls may be sent behind the one it works on: its plugin is declared short, and nothing is wrong."""
        return (
            self.manifest is not None
            and self.manifest.short
            and self._phase is Phase.RUN
            and (self.is_fit or bool(self._line))
            and self._channel.is_clear
            and self._end is None
            and not self._is_dead
        )

    # --- what the pool asks for ---

    async def load(self, limit_s: float) -> PluginManifest | Failure:
        """Have the plugin imported and described, the first thing to ask of a worker."""
        hello = {
            "source": dataclasses.asdict(await asyncio.to_thread(as_installed_now, self.source)),
            "sys_path": [os.path.abspath(path) for path in sys.path],  # noqa: ASYNC240, PTH100  # '' is the folder
            "folder": str(self._child.folder),
            "memory_bytes": self._ceilings.memory_bytes,
            "result_bytes": self._ceilings.result_bytes,
        }
        answer = await self._ask(self._exchange(limit_s), pack(Kind.HELLO, hello))
        if not isinstance(answer, Frame):
            return answer or self._crash()
        try:
            said = parse(answer)
            if answer.kind is not Kind.MANIFEST:
                return failure_of(said, self._phase, self._ceilings.memory_bytes / MB)
            self.manifest = manifest_of(said, self.source)
            self._has_teardown = said.get("teardown") is True
        except FrameError as error:
            return await self._broken(error)
        self._phase = Phase.SETUP
        self._printed = self._output.size()
        return self.manifest

    async def execute(self, payload: dict[str, Any], call: Call, limits: Limits) -> Outcome | None:
        """Have one payload executed. When it returns or raises, the plugin has stopped; `call.report` is filled.

        None for a call behind others that the worker did not come to before it ended: another worker may take it.
        """
        report = call.report
        report.artifacts.clear()  # of a worker that broke the protocol when this call had just begun
        report.metrics.clear()
        report.worker_pid = self.pid
        report.plugin_version = None if self.manifest is None else self.manifest.version
        exchange = self._exchange(limits.setup_s if self._phase is Phase.SETUP else limits.run_s, call, limits)
        header = {
            "number": exchange.number,
            "job_id": call.job_id,
            "attempt": call.attempt,
            "timeout_s": limits.run_s,
            "payload": payload,
        }
        try:
            request = pack(Kind.CALL, header)
            if len(request[0]) <= SMALL:
                check_document(payload)
            else:
                await asyncio.to_thread(check_document, payload)
        except FrameError as error:
            return Failure(incident=Incident.REFUSED, message=f"The payload cannot be passed on: {error}.")
        except NotStorableError as error:
            return Failure(incident=Incident.REFUSED, message=str(error), problems=[error.problem])
        reply: dict[str, Any] = {}
        try:
            answer = await self._ask(exchange, request)
            if not isinstance(answer, Frame):
                return answer
            try:
                if len(answer.header) <= SMALL:
                    said, result = reply_of(answer)
                else:
                    said, result = await asyncio.to_thread(reply_of, answer)
                reply = _checked(said, exchange.number)
                return failure_of(reply, self._phase, limits.memory_bytes / MB) if result is None else result
            except FrameError as error:
                return await self._broken(error)
        except asyncio.CancelledError:
            if isinstance(exchange.last_word, Frame):
                try:
                    reply = _checked(parse(exchange.last_word), exchange.number)
                except FrameError as error:
                    self.kill(_protocol(str(error)))
            raise
        finally:
            if exchange.began is not None:
                await self._measure(exchange, report, reply)

    async def retire(self) -> None:
        """End an idle worker, its teardown first; returns when it is gone with all it started."""
        self.is_fit = False
        if self._has_teardown and self._phase is Phase.RUN and not self._is_dead and self._end is None:
            self._channel.hang_up()
            await asyncio.wait([self.gone], timeout=TEARDOWN_GRACE_S)
        self.kill(Failure(incident=Incident.HOST, message="The worker was retired."))
        await asyncio.wait([self.gone])

    def kill(self, why: Failure) -> None:
        """Begin to kill the worker with all it started; `why` becomes the answer of what it works on."""
        if self._end is None and not self._is_dead:
            self._end = why
            self.is_fit = False
            self._killing = self._loop.run_in_executor(
                self._undertakers, processes.kill_family, self._child.process.pid, self._child.pidfd, self._child.marker
            )

    # --- exchanges ---

    def _exchange(self, limit_s: float, call: Call | None = None, limits: Limits | None = None) -> _Exchange:
        self._asked += 1
        return _Exchange(self._asked, limit_s, self._loop.create_future(), call, limits)

    async def _ask(self, exchange: _Exchange, buffers: Sequence[bytes]) -> Frame | Failure | None:
        """Send a frame and wait for the one that answers it; on cancellation, until the plugin has stopped."""
        if self._is_dead or self._end is not None:
            await asyncio.wait([self.gone])
            # What ended it is a matter of earlier calls, if there were any.
            return None if self._phase is Phase.RUN else self._end or self._crash()
        if not self.is_fit and not self._line and self._phase is not Phase.IMPORT:
            return None  # it has said its last word while this was made ready
        self._line.append(exchange)
        if self._line[0] is exchange:
            self._begin(exchange)
        self._channel.send(buffers)
        try:
            return await exchange.answer
        except asyncio.CancelledError:
            if exchange in self._line:  # it may have been answered since it was cancelled
                self._stop(exchange)
                await settle(_wait(exchange.answer))
            raise

    def _begin(self, exchange: _Exchange) -> None:
        """The worker works on it from now on."""
        exchange.began = self._loop.time()
        exchange.emptied = self._output.emptied
        self.is_fit = False
        self.watched.peak_bytes = 0
        self.watched.limit_bytes = self._memory_limit()
        if exchange.is_cancelled:
            self._kill_soon()
        else:
            self._arm(exchange.limit_s)

    def _stop(self, exchange: _Exchange) -> None:
        """Ask a call to end, and have the worker killed if it does not when it is at it; `answer` tells."""
        exchange.answer = self._loop.create_future()
        exchange.is_cancelled = True
        if self._phase is not Phase.IMPORT:
            self._channel.send(pack(Kind.CANCEL, {"number": exchange.number}))
        if exchange.began is not None:
            self._kill_soon()

    def _kill_soon(self) -> None:
        """After the time that a cancelled call has to end; nobody waits for an import."""
        self._disarm()
        why = Failure(incident=Incident.HOST, message="The call was cancelled.")
        self._timer = self._loop.call_later(0 if self._phase is Phase.IMPORT else CANCEL_GRACE_S, self.kill, why)

    def _arm(self, limit_s: float) -> None:
        self._disarm()
        self._limit_s = limit_s
        self._timer = self._loop.call_later(limit_s, self._on_time_over)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, why: Failure | None) -> None:
        """Nothing more will be answered: `why` is for what the worker works on, the rest may go to another one."""
        self._disarm()
        while self._line:
            self._finish(self._line.popleft(), why)
            why = None

    def _finish(self, exchange: _Exchange, answer: Frame | Failure | None) -> None:
        exchange.peak_bytes = self.watched.peak_bytes
        if exchange.began is not None and self._output.emptied != exchange.emptied:
            exchange.before_emptied = self._output.before_emptied
        exchange.last_word = answer
        if not exchange.answer.done():
            exchange.answer.set_result(answer)

    async def _broken(self, error: FrameError) -> Failure:
        """The worker broke the protocol: kill it."""
        self.kill(_protocol(str(error)))
        self._give_up(None)
        await settle(_wait(self.gone))
        return self._end or _protocol(str(error))

    async def _measure(self, exchange: _Exchange, report: CallReport, reply: Mapping[str, Any]) -> None:
        """Take over what the worker measured; where it said nothing, it is dead, and what it left is told."""
        if not reply:
            await settle(_wait(self.gone))
        limits = exchange.limits
        # A second for what it does around its limits. Sums are made of this: no word of a plugin may break them.
        most_s = 1.0 + (limits.setup_s + limits.run_s if limits else exchange.limit_s)
        report.run_s = measured(reply.get("run_s"), most_s)
        if report.run_s is None and self._phase is Phase.RUN and exchange.began is not None:
            report.run_s = self._loop.time() - exchange.began
        peak_bytes = int(measured(reply.get("peak_bytes"), _MOST_MEMORY_BYTES) or 0)
        report.peak_memory_bytes = max(peak_bytes, exchange.peak_bytes) or None
        cpu_s = reply.get("cpu_s") if reply else self._cpu_total - self._cpu_s
        report.cpu_s = measured(cpu_s, most_s * _CORES)
        self._cpu_s = max(self._cpu_s, number_of(reply.get("total_cpu_s")) or 0.0)
        start, end = span_of(reply.get("printed")) or (self._printed, None)
        if end is not None:
            self._printed = end
        if exchange.before_emptied:
            start = 0
        elif end is not None and end <= start:
            report.output = None
            return
        printed = exchange.before_emptied + await asyncio.to_thread(self._output.tail, start, end)
        report.output = printed[-TAIL_BYTES:].decode("utf-8", "replace").replace("\0", "") or None

    # --- what it says ---

    def _on_frame(self, frame: Frame) -> None:
        if self._end is not None:
            return
        handle = self._handlers.get(frame.kind)
        if handle is None:
            raise FrameError(f"a worker must not send {frame.kind.name}")
        handle(frame)

    def _on_hangup(self) -> None:
        if self.is_fit or self._line:
            # Its death, if it is that, is known when its keeper has ended what it left, and tells more.
            self._loop.call_later(HANGUP_GRACE_S, self.kill, _protocol("it closed its channel"))
        self.is_fit = False

    def _on_answer(self, frame: Frame) -> None:
        if not self._line:
            raise FrameError("an answer that nothing asked for")
        if (frame.kind is Kind.MANIFEST) and self._phase is not Phase.IMPORT:
            raise FrameError("a manifest in place of a reply")
        if self._line[0].received + frame.size > self._ceilings.result_bytes + MAX_REPLY_BYTES:
            raise FrameError("result and artifacts are larger than this service accepts")
        self._flush_news()
        self._disarm()
        self._finish(self._line.popleft(), frame)
        self.is_fit = frame.kind is not Kind.LAST_REPLY
        if not self.is_fit:
            self._give_up(None)
        elif self._line:
            self._begin(self._line[0])
        else:
            self.watched.limit_bytes = self._ceilings.memory_bytes

    def _on_started(self, frame: Frame) -> None:
        pid = parse(frame).get("pid")
        if self._pid is not None or type(pid) is not int:
            raise FrameError("it started twice")
        self._pid = pid
        self._keeper_cpu_s = processes.cpu_seconds(self._child.process.pid)

    def _on_ready(self, frame: Frame) -> None:
        if self._phase is not Phase.SETUP or not self._line or (limits := self._line[0].limits) is None:
            raise FrameError("set-up ended twice")
        self._phase = Phase.RUN
        self._cpu_s = number_of(parse(frame).get("total_cpu_s")) or 0.0
        if not self._line[0].is_cancelled:
            self._arm(limits.run_s)

    def _on_progress(self, frame: Frame) -> None:
        if frame.size > SMALL:
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
        call = self._call()
        if frame is None or call is None:
            return
        self._news_at = self._loop.time()
        try:
            fraction, message = progress_of(frame)
        except FrameError as error:
            self.kill(_protocol(str(error)))
            return
        try:
            call.on_progress(fraction, message)
        except Exception:
            log.exception("progress was not taken", job_id=call.job_id)

    def _on_metric(self, frame: Frame) -> None:
        name, value = metric_of(frame)
        if (call := self._call()) is not None:
            metrics = call.report.metrics
            if len(metrics) < MAX_METRICS or name in metrics:
                metrics[name] = value

    def _on_artifact(self, frame: Frame) -> None:
        artifact = artifact_of(frame)
        if (call := self._call()) is not None:
            exchange, artifacts = self._line[0], call.report.artifacts
            exchange.received += len(artifact.data)  # as the worker counts it
            if exchange.received > self._ceilings.result_bytes + SMALL or len(artifacts) >= MAX_ARTIFACTS:
                raise FrameError("artifacts are larger than this service accepts")
            artifacts.append(artifact)

    def _call(self) -> Call | None:
        """The call that it works on."""
        return self._line[0].call if self._line else None

    # --- its end ---

    def _memory_limit(self) -> int:
        limits = self._line[0].limits if self._line else None
        return self._ceilings.memory_bytes if limits is None else limits.memory_bytes

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
        """The keeper is a zombie, so nothing is left below it: read what the worker had sent, then bury them."""
        self._loop.remove_reader(self._child.pidfd)
        self._channel.close()
        self._is_dead = True
        self.is_fit = False
        self._disarm()
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
            self._give_up(self._end or self._crash())

    def _clear_away(self) -> int:
        """In a thread: kill what escaped its keeper, reap that, close and remove what it used; its exit status."""
        child = self._child
        # Until the keeper is reaped its id is nobody else's.
        processes.kill_family(child.process.pid, child.pidfd, child.marker)
        _, status, usage = os.wait4(child.process.pid, 0)
        child.process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_total = usage.ru_utime + usage.ru_stime - self._keeper_cpu_s
        self._sampler.forget(self.watched)
        self._output.close()
        child.connection.close()
        os.close(child.pidfd)
        folders.remove(child.folder)
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
    if is_cancelled:
        raise asyncio.CancelledError from task.exception()
    task.result()


async def _wait(future: asyncio.Future[Any]) -> None:
    await asyncio.wait([future])


def _checked(reply: dict[str, Any], number: int) -> dict[str, Any]:
    """The reply to the call of that number; raises `FrameError` for any other.

    Else what a plugin wrote to the channel would give each later call the result of the one before it.
    """
    if reply.get("number") != number:
        raise FrameError("the reply is to another call")
    return reply


def _protocol(how: str) -> Failure:
    message = f"Its worker process broke the protocol: {how}."
    return Failure(incident=Incident.PROTOCOL, message=message, details={"reason": "protocol"})


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
