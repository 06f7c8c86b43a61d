"""The worker process: loads one plugin, then executes it for one call after the other. Runs nowhere but in a child."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import faulthandler
import fcntl
import functools
import importlib
import inspect
import logging
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from service import failpoints
from service.errors import InputInvalidError, JobCancelledError, OutputInvalidError, PluginDefinitionError
from service.plugins import loading
from service.plugins.context import Context
from service.plugins.loading import LoadedPlugin
from service.plugins.manifest import PluginSource
from service.plugins.output import plain
from service.tool_runner import folders, processes
from service.tool_runner.executor import Incident
from service.tool_runner.frames import READ_SIZE, Frame, FrameDecoder, FrameError, Kind, document, pack, parse

MAX_TEXT_CHARS: Final = 8_192
MAX_TRACEBACK_CHARS: Final = 32_768
#: Progress that passes at once, and how often another one does then.
PROGRESS_BURST: Final = 10
PROGRESS_EVERY_S: Final = 0.1
MAX_ARTIFACTS: Final = 1_000
#: More than an exception may ask to wait before the next attempt, and still a number that every frame holds.
MAX_SECONDS: Final = 1e9
#: Made once in the life of a process by `multiprocessing`, which counts on it from then on.
LASTING_PREFIX: Final = "pymp-"

_KIND_OF: Final = {"progress": Kind.PROGRESS, "metric": Kind.METRIC, "artifact": Kind.ARTIFACT}

_TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)

_PR_SET_NO_NEW_PRIVS: Final = 38

#: What stands above the plugin's own code in the traceback of its import.
_LOADERS: Final = frozenset({__file__, loading.__file__, importlib.__file__})

#: In /proc/self/status: the peak, and what is resident.
_MEMORY: Final = re.compile(rb"VmHWM:\s+(\d+) kB\nVmRSS:\s+(\d+) kB")


def _confine(parent: int) -> None:
    """Die with the keeper, adopt orphans, gain no privileges, go first when memory is short."""
    processes.join_family(parent, signal.SIGKILL)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 4_096 if hard == resource.RLIM_INFINITY else min(hard, 4_096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _limit_address_space(memory_bytes: int) -> None:
    """A backstop far above the limit: numeric libraries reserve much more address space than they ever use."""
    wanted = 4 * memory_bytes + 4_000_000_000
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))


class _Hangup(Exception):  # noqa: N818  # not an error: the service wants no more of this worker
    """The service closed the channel."""


class Channel:
    """The worker's end of the socket. Sending is safe from any thread."""

    def __init__(self, connection: socket.socket, max_attached_bytes: int) -> None:
        self.connection = connection
        self._decoder = FrameDecoder(max_attached_bytes)
        self._inbox: deque[Frame] = deque()
        self._sending = threading.Lock()
        self._receiving = threading.Lock()

    def receive(self) -> Frame:
        """The next frame, waited for; raises `_Hangup`."""
        with self._receiving:
            while not self._inbox:
                self._read(0)
            return self._inbox.popleft()

    def is_cancelled(self, number: int) -> bool:
        """Whether the CANCEL of that call has come; raises `_Hangup`.

        Nothing is taken away: the calls that wait are no business of the one that runs.
        """
        with self._receiving:
            with suppress(BlockingIOError):
                self._read(socket.MSG_DONTWAIT)
            return any(frame.kind is Kind.CANCEL and parse(frame)["number"] == number for frame in self._inbox)

    def send(self, buffers: Sequence[bytes]) -> None:
        """Send one packed frame, whole; raises `OSError` where nobody listens any more."""
        with self._sending:
            if failpoints.active:
                self._send_in_halves(b"".join(buffers))
                return
            for buffer in buffers:
                self.connection.sendall(buffer)

    def _send_in_halves(self, frame: bytes) -> None:
        self.connection.sendall(frame[: len(frame) // 2])
        failpoints.hit("child.frame_half_written")
        self.connection.sendall(frame[len(frame) // 2 :])
        failpoints.hit("child.frame_written")

    def _read(self, flags: int) -> None:
        data = self.connection.recv(READ_SIZE, flags)
        if not data:
            raise _Hangup
        self._inbox.extend(self._decoder.feed(data))


class Execution:
    """What the context of one call may send, and whether the call was cancelled."""

    def __init__(self, channel: Channel, number: int, result_bytes: int) -> None:
        self.number = number
        self._most_bytes = result_bytes  # of the result and its artifacts
        self._artifact_bytes = 0
        self.run_s: float | None = None
        self._channel = channel
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_over = False
        self._is_cancelled = False
        self._artifacts = 0
        self._tokens = float(PROGRESS_BURST)
        self._refilled = time.monotonic()
        self._held: dict[str, Any] | None = None

    def emit(self, header: dict[str, Any], attachments: Sequence[bytes]) -> None:
        """Send progress, a metric or an artifact; what comes too fast or too late is left out."""
        if os.getpid() != self._pid:
            return  # a forked process, in which nobody may be left to release the lock
        with self._lock:
            if self._is_over:
                return  # a thread that outlived its call
            kind = _KIND_OF[header["type"]]
            if kind is Kind.PROGRESS and not self._may_pass():
                self._held = header
                return
            self._held = None if kind is Kind.PROGRESS else self._held
            if kind is Kind.ARTIFACT:
                size = sum(map(len, attachments))
                self.check_size(size)
                if self._artifacts == MAX_ARTIFACTS:
                    raise OutputInvalidError(f"there are more than {MAX_ARTIFACTS} artifacts", "")
                self._artifacts += 1
                self._artifact_bytes += size
            self._channel.send(pack(kind, header, attachments))

    def check_size(self, size: int) -> None:
        """Raise `OutputInvalidError` where a result of `size` bytes is too large beside the artifacts there are."""
        if size + self._artifact_bytes > self._most_bytes:
            raise OutputInvalidError(
                f"takes more than {self._most_bytes} bytes together with its artifacts (JOBSERVICE_MAX_RESULT_MB)", ""
            )

    def is_cancelled(self) -> bool:
        """Whether the service asked to end this call."""
        if not self._is_cancelled and os.getpid() == self._pid:
            try:
                self._is_cancelled = self._channel.is_cancelled(self.number)
            except _Hangup:
                os._exit(0)
        return self._is_cancelled

    def finish(self) -> None:
        """Send the newest progress if it was held back, and nothing from now on."""
        with self._lock:
            self._is_over = True
            if self._held is not None:
                self._channel.send(pack(Kind.PROGRESS, self._held))

    def _may_pass(self) -> bool:
        now = time.monotonic()
        self._tokens = min(PROGRESS_BURST, self._tokens + (now - self._refilled) / PROGRESS_EVERY_S)
        self._refilled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Worker:
    """One plugin and the state of its process."""

    def __init__(self, channel: Channel, hello: dict[str, Any]) -> None:
        self._channel = channel
        self._pid = os.getpid()
        self._result_bytes: int = hello["result_bytes"]
        self._memory_bytes: int = hello["memory_bytes"]
        self._source = PluginSource(**hello["source"])
        self._folder: str = hello["folder"]
        self._job_folder = Path(self._folder, "job")
        # A plugin may close or replace the descriptors that it prints to.
        self._output = fcntl.fcntl(sys.stdout.fileno(), fcntl.F_DUPFD_CLOEXEC, 512)
        self._cpu_s = 0.0  # taken until the last reply
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_loop_sound = True
        self._is_set_up = False
        self._residents: set[int] = set()  # processes that set-up left, which may stay
        self._lasting: set[str] = set()  # what set-up left in the folder, which may stay
        self._timers: list[int] = []  # those that set-up did not start
        self._meter = _MemoryMeter()
        self._most_kept_bytes = 0  # what the process may hold between two calls

    def serve(self) -> None:
        """Load the plugin, then answer calls until the service hangs up or the process is not fit for another one."""
        plugin = self._load()
        if plugin is None:
            return
        try:
            while True:
                frame = self._channel.receive()
                # A CANCEL that came after the end of its call is none of the next one's business.
                if frame.kind is Kind.CALL and not self._answer(plugin, frame):
                    return
        except _Hangup:
            if self._is_set_up and plugin.teardown is not None:
                self._finished(plugin.teardown())

    def _load(self) -> LoadedPlugin | None:
        try:
            plugin = loading.load(self._source)
            said = {"manifest": dataclasses.asdict(plugin.manifest), "teardown": plugin.teardown is not None}
            described = pack(Kind.MANIFEST, said)
        except (PluginDefinitionError, FrameError) as error:
            self._survive()
            self._channel.send(pack(Kind.LAST_REPLY, _failure(Incident.DEFINITION, error)))
            return None
        except BaseException as error:  # noqa: BLE001  # whatever foreign code raises
            self._survive()
            place = _text(functools.partial(_place, error), "", MAX_TEXT_CHARS)
            reply = {**_failure(_incident(error, Incident.IMPORT), error), "place": place}
            self._channel.send(pack(Kind.LAST_REPLY, reply))
            return None
        self._survive()
        if plugin.manifest.memory_mb is not None:
            self._memory_bytes = int(min(self._memory_bytes, plugin.manifest.memory_mb * 1_000_000))
            _limit_address_space(self._memory_bytes)
        self._channel.send(described)
        return plugin

    def _answer(self, plugin: LoadedPlugin, frame: Frame) -> bool:
        """Execute one call and send its reply; False when this process must not take another one."""
        header = parse(frame)
        payload = document(header["payload"], frame.attachments)
        if not self._is_set_up:
            try:
                if plugin.setup is not None:
                    self._finished(plugin.setup())
                self._lasting = self._names() - {self._job_folder.name}
            except BaseException as error:  # noqa: BLE001  # whatever foreign code raises
                self._survive()
                reply = {"number": header["number"], **_failure(_incident(error, Incident.SETUP), error)}
                self._channel.send(pack(Kind.LAST_REPLY, reply))
                return False
            self._survive()
            self._is_set_up = True
            self._residents = self._children()
            self._timers = [timer for timer in _TIMERS if not any(signal.getitimer(timer))]
            # Half of what set-up left: else the next call is blamed for what the ones before it kept.
            self._most_kept_bytes = (self._memory_bytes + self._meter.read().resident_bytes) // 2
            self._cpu_s = _cpu_seconds()
            self._channel.send(pack(Kind.READY, {"total_cpu_s": self._cpu_s}))
        execution = Execution(self._channel, header["number"], self._result_bytes)
        self._meter.reset()
        printed_before = self._printed_bytes()
        reply, is_fit = self._execute(plugin, header, payload, execution)
        memory = self._meter.read()
        measured: dict[str, Any] = {
            "number": execution.number,
            "run_s": execution.run_s,
            "peak_bytes": memory.peak_bytes,
            **self._cpu_taken(),
        }
        has_left_processes = self._has_left_processes()
        execution.finish()
        is_tidy = self._is_tidied()
        measured["printed"] = [printed_before, self._printed_bytes()]
        is_light = memory.resident_bytes <= self._most_kept_bytes
        is_fit = is_fit and is_tidy and is_light and self._is_loop_sound and not has_left_processes
        kind = Kind.REPLY if is_fit else Kind.LAST_REPLY
        try:
            buffers = pack(kind, {**reply, **measured})
            if "result" in reply:  # why there is none is told however much the artifacts took
                execution.check_size(sum(map(len, buffers)))
        except (FrameError, OutputInvalidError) as error:
            buffers = pack(kind, {**_failure(Incident.OUTPUT, error), **measured})
        self._channel.send(buffers)
        return kind is Kind.REPLY

    def _printed_bytes(self) -> int:
        return os.fstat(self._output).st_size

    def _cpu_taken(self) -> dict[str, float]:
        before, self._cpu_s = self._cpu_s, _cpu_seconds()
        return {"cpu_s": self._cpu_s - before, "total_cpu_s": self._cpu_s}

    def _execute(
        self, plugin: LoadedPlugin, header: dict[str, Any], payload: dict[str, Any], execution: Execution
    ) -> tuple[dict[str, Any], bool]:
        """The reply, and whether the process is fit for another call."""
        os.chdir(self._folder)
        context = Context(
            job_id=header["job_id"],
            attempt=header["attempt"],
            deadline=time.time() + header["timeout_s"],
            tmp=self._temporary_folder,
            emit=execution.emit,
            is_cancelled=execution.is_cancelled,
        )
        incident = Incident.RAISED
        is_cancelled = self._channel.is_cancelled(execution.number)
        try:
            if is_cancelled:
                raise JobCancelledError("the job was cancelled before its turn had come")
            try:
                arguments, options = plugin.bind(payload, context)
            except InputInvalidError as error:  # from anywhere else it says nothing of the input
                self._survive()
                problems = [[problem.pointer, problem.message] for problem in error.problems]
                return {**_failure(Incident.REFUSED, error), "traceback": None, "problems": problems}, True
            started = time.monotonic()
            try:
                returned = self._finished(plugin.run(*arguments, **options), execution)
            finally:
                self._survive()
                execution.run_s = time.monotonic() - started
            incident = Incident.OUTPUT
            return {"result": plain(returned)}, True
        except OutputInvalidError as error:
            self._survive()
            pointer = _text(functools.partial(getattr, error, "pointer"), "", MAX_TEXT_CHARS)
            return {**_failure(Incident.OUTPUT, error), "pointer": pointer}, True
        except BaseException as error:  # noqa: BLE001  # whatever foreign code raises, SystemExit and KeyboardInterrupt too
            self._survive()
            is_fit = isinstance(error, Exception | JobCancelledError | asyncio.CancelledError)
            return _failure(_incident(error, incident), error), is_fit and not isinstance(error, MemoryError)

    def _finished(self, returned: Any, execution: Execution | None = None) -> Any:
        """`returned`, or what comes out of it where it is awaitable. One event loop serves the whole process."""
        if not inspect.isawaitable(returned):
            return returned
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        loop, before = self._loop, asyncio.all_tasks(self._loop)
        task = loop.create_task(_awaited(returned))
        try:
            if execution is not None:
                loop.add_reader(self._channel.connection, _cancel_on_request, task, execution, self._channel)
            return loop.run_until_complete(task)
        except BaseException as error:
            # What is not the task's own is the loop's: the plugin stopped it, or closed its descriptors.
            self._is_loop_sound = task.done() and (task.cancelled() or task.exception() is error)
            raise
        finally:
            if self._is_loop_sound:
                if execution is not None:
                    loop.remove_reader(self._channel.connection)
                if rest := asyncio.all_tasks(loop) - before - {task}:
                    self._end_tasks(loop, rest, before)

    def _end_tasks(
        self, loop: asyncio.AbstractEventLoop, rest: set[asyncio.Task[Any]], before: set[asyncio.Task[Any]]
    ) -> None:
        """Cancel what a call left running, and wait for it; a loop that does not get there is not used again."""
        for left in rest:
            left.cancel()
        self._is_loop_sound = False
        loop.run_until_complete(asyncio.wait(rest))
        self._is_loop_sound = asyncio.all_tasks(loop) <= before

    def _survive(self) -> None:
        """End a copy of this process that foreign code made and let return: there is one that answers."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _children(self) -> set[int]:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return set()  # the usual case, for the price of one system call
        return set(processes.family(self._pid))

    def _has_left_processes(self) -> bool:
        """Whether processes that the call started are still there; its zombies are reaped."""
        with suppress(ChildProcessError):
            while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if dead.si_pid in self._residents:
                    return True
                os.waitpid(dead.si_pid, 0)
            # Something lives. One look at /proc may miss what is forked, and whose parent ends, while it looks.
            return not self._residents or not self._children() | self._children() <= self._residents
        return False

    def _temporary_folder(self) -> Path:
        """Made when it is asked for: most calls need none, and it would be a tenth of what a short one costs."""
        self._job_folder.mkdir(exist_ok=True)
        return self._job_folder

    def _is_tidied(self) -> bool:
        """Put away what the call left; whether the next one would find none of it. Raises nothing."""
        try:
            for timer in self._timers:
                signal.setitimer(timer, 0)
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            left = [Path(self._folder, name) for name in self._names() if not self._may_stay(name)]
            for path in left:
                folders.remove(path)
            return not any(map(os.path.lexists, left))
        except BaseException:  # noqa: BLE001  # of a stream that the plugin put there, say
            return False

    def _names(self) -> set[str]:
        return {*os.listdir(self._folder)}  # noqa: PTH208  # no Path at hand

    def _may_stay(self, name: str) -> bool:
        """Whether what has this name in the folder is no matter of one call."""
        is_lasting = name in self._lasting or name.startswith(LASTING_PREFIX)
        # A process that set-up started may have made it just now.
        return is_lasting or (bool(self._residents) and name != self._job_folder.name)


class _Memory(NamedTuple):
    """What this process has resident, and had at most; 0 where it cannot be read."""

    resident_bytes: int = 0
    peak_bytes: int = 0


class _MemoryMeter:
    """Measures the resident memory of this process, and its peak since `reset`.

    Holds its files open: a plugin may use up descriptors.
    """

    def __init__(self) -> None:
        self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)

    def reset(self) -> None:
        with suppress(OSError):
            os.pwrite(self._reset, b"5", 0)

    def read(self) -> _Memory:
        """What it is now; one read, because the kernel takes longer to write this file than a short call may last."""
        with suppress(OSError):
            if (found := _MEMORY.search(os.pread(self._status, 4096, 0))) is not None:
                peak_kb, resident_kb = map(int, found.groups())
                return _Memory(resident_kb * 1024, peak_kb * 1024)
        return _Memory()


async def _awaited(returned: Any) -> Any:
    return await returned


def _cancel_on_request(task: asyncio.Task[Any], execution: Execution, channel: Channel) -> None:
    if execution.is_cancelled():
        task.get_loop().remove_reader(channel.connection)  # what comes next must not disturb it while it cleans up
        task.cancel()


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _incident(error: BaseException, otherwise: Incident) -> Incident:
    return Incident.MEMORY if isinstance(error, MemoryError) else otherwise


def _failure(incident: Incident, error: BaseException) -> dict[str, Any]:
    """The part of a reply that tells what `error` is, whatever its class does to those who look at it."""
    name = _text(functools.partial(type.__dict__["__name__"].__get__, type(error)), "an exception", MAX_TEXT_CHARS)
    return {
        "incident": incident,
        "exception": name,
        "message": _text(lambda: str(error), "", MAX_TEXT_CHARS) or name,
        "traceback": _text(lambda: "".join(traceback.format_exception(error)), "", -MAX_TRACEBACK_CHARS),
        "retryable": _said(error, "retryable", bool),
        "retry_after_s": _said(error, "retry_after_s", int, float),
    }


def _place(error: BaseException) -> str:
    """File and line of the plugin's code, or of what that called, which raised `error`; empty where none did."""
    lines = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    path, line = [(path, line) for path, line in lines if path.is_absolute()][-1]  # "<frozen ...>" is no file
    return "" if str(path) in _LOADERS else f"{path.name}, line {line}"


def _said(error: BaseException, name: str, *kinds: type) -> Any:
    """What a foreign exception says of itself; None where it says nothing, or something else than asked."""
    try:
        value: Any = getattr(error, name, None)
    except BaseException:  # noqa: BLE001  # an attribute of a foreign exception is foreign code
        return None
    return value if type(value) in kinds and 0 <= value <= MAX_SECONDS else None


def _text(read: Callable[[], str], otherwise: str, most: int) -> str:
    """What `read` gives, fit for every database, its first `most` characters or, where negative, its last."""
    try:
        text = str.__str__(read())
        text = text[:most] if most >= 0 else text[most:]
    except BaseException:  # noqa: BLE001  # the text of a foreign exception is foreign code
        return otherwise
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def main(descriptor: int, keeper: int) -> NoReturn:
    """Serve the service at the other end of the descriptor. The keeper is the parent of this process."""
    _confine(keeper)
    faulthandler.enable()
    # Out of the way of plugins that close the first descriptors, and out of reach of programs that they start.
    connection = socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 512))
    os.close(descriptor)
    os.environ.pop("PYTHONPATH", None)  # it was there for this module to be found
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # the real ones
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        # A payload was accepted by the service already; what it may weigh is not for this side to say.
        channel = Channel(connection, max_attached_bytes=2**40)
        channel.send(pack(Kind.STARTED, {"pid": os.getpid()}))
        hello = parse(channel.receive())
        sys.path[:] = hello["sys_path"]
        sys.argv[1:] = []
        _limit_address_space(hello["memory_bytes"])
        Worker(channel, hello).serve()
    except (OSError, _Hangup):
        pass  # the service is gone, or wants no more
    except BaseException:  # noqa: BLE001  # it is printed, and nothing is above
        traceback.print_exc()
        os._exit(70)
    # Threads, exit handlers and destructors of the plugin are not waited for: everything was said.
    os._exit(0)
