# ruff: noqa: ASYNC240, BLE001, PTH102, PTH112, PTH115, PTH208, T201
"""Plugins that do what a plugin must not do, each its own way, and a few that behave.

The rules that are off here forbid just that: foreign code blocks, sleeps, prints and works on paths as it likes.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing.util
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.errors import FieldProblem, InputInvalidError

# --- well-behaved neighbours ---


def neighbour(payload: dict) -> dict:
    return {"echo": payload}


def brief(payload: dict, context=None) -> dict:
    """Declared short, whatever it is told to do: so others stand behind it in the same worker."""
    match payload.get("do"):
        case "die":
            os._exit(9)
        case "leave":
            raise SystemExit(3)
        case "leave_soon":
            time.sleep(0.2)  # others are made ready meanwhile
            raise SystemExit(3)
        case "doze":
            Path(payload["path"]).touch()
            time.sleep(0.2)  # others behind it are cancelled meanwhile
        case "hang":
            time.sleep(60)
        case "wait":
            context.progress(0.5, "waits")
            while True:
                context.check_cancelled()
                time.sleep(0.01)
        case "print":
            print(payload["text"])
        case "write":
            Path(payload["path"]).write_text("it ran")
    return {"n": payload.get("n"), "pid": os.getpid(), "at": time.monotonic()}


brief.short = True


async def tidies_up(payload: dict, context: Any) -> dict:
    """When it is cancelled, writes down how often it was disturbed while it cleaned up."""
    if "trace" not in payload:
        return {}
    trace, disturbed = Path(payload["trace"]), 0
    context.progress(0, "running")
    try:
        await asyncio.sleep(3600)
    finally:
        trace.touch()
        for _ in range(10):
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                disturbed += 1
        trace.write_text(str(disturbed))
    return {}


tidies_up.short = True


def keeps_what_fits(payload: dict, context: Any) -> dict:
    """Goes without the artifacts that are refused."""
    for number, size in enumerate(payload["sizes"]):
        with suppress(Exception):
            context.artifact(f"{number}.bin", bytes(size))
    return {}


def tells_from_forks(payload: dict, context: Any) -> dict:
    """Has forked processes tell progress while a thread does."""
    is_over = threading.Event()

    def tell() -> None:
        while not is_over.is_set():
            context.progress(0.5)

    thread = threading.Thread(target=tell)
    thread.start()
    for _ in range(payload["forks"]):
        if (child := os.fork()) == 0:
            context.progress(0.6)
            os._exit(0)
        os.waitpid(child, 0)
    is_over.set()
    thread.join()
    return {}


def slowly(payload: dict) -> dict:
    time.sleep(payload["seconds"])
    return {"slept": payload["seconds"]}


async def waiting(payload: dict) -> dict:
    await asyncio.sleep(payload["seconds"])
    return {"slept": payload["seconds"]}


def whoami(payload: dict) -> dict:
    return {
        "pid": os.getpid(),
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
        "descriptors": [
            str(Path(path).readlink()) for path in map("/proc/self/fd/{}".format, range(4096)) if os.path.lexists(path)
        ],
    }


def fails_before(payload: dict, context: Any) -> dict:
    """Fails until the attempt that the payload names; its exception carries the attributes that the payload names."""
    if context.attempt < payload["attempt"]:
        error = RuntimeError(f"not at attempt {context.attempt}")
        vars(error).update(payload.get("says", {}))
        raise error
    return {"attempt": context.attempt}


class OneAtATime:
    name = "one_at_a_time"
    concurrency = 1

    def run(self, payload: dict) -> dict:
        begun = time.monotonic()
        time.sleep(payload["seconds"])
        return {"begun": begun, "ended": time.monotonic()}


class Warm:
    """Tells how often it was set up; its teardown leaves a trace where the payload said."""

    name = "warm"

    def __init__(self) -> None:
        self.set_ups = 0
        self.trace: str | None = None

    def setup(self) -> None:
        self.set_ups += 1

    def run(self, payload: dict) -> dict:
        self.trace = payload.get("trace", self.trace)
        return {"pid": os.getpid(), "set_ups": self.set_ups}

    def teardown(self) -> None:
        if self.trace:
            Path(self.trace).write_text("torn down")


def typed(data: bytes, width: int = 3) -> dict:
    return {"size": len(data), "width": width, "back": data}


def generous(payload: dict, context: Any) -> dict:
    context.progress(0.25, "a quarter")
    context.artifact("note.txt", b"hello", "text/plain")
    context.metric("score", 0.5)
    (context.tmp / "left.txt").write_text("left")
    return {"job": context.job_id, "attempt": context.attempt, "in_time": context.deadline > time.time()}


def tmp_content(payload: dict, context: Any) -> dict:
    return {"files": os.listdir(context.tmp)}


class LeavesFiles:
    """Files of every kind beside those of its set-up; tells what it found."""

    name = "leaves_files"

    def setup(self) -> None:
        self.lasting = tempfile.mkdtemp()

    def run(self, payload: dict) -> dict:
        found = os.listdir(tempfile.gettempdir())
        Path("here").write_text("in the working directory")
        tempfile.mkstemp()
        Path(tempfile.mkdtemp(), "file").touch()
        Path(multiprocessing.util.get_temp_dir(), "socket").touch()
        return {"pid": os.getpid(), "found": len(found), "is_lasting": os.path.isdir(self.lasting)}


def leaves_a_folder(payload: dict, context: Any) -> dict:
    """Whose folder cannot just be removed afterwards; tells what was in it."""
    folder = context.tmp
    found = os.listdir(folder)
    match payload.get("how"):
        case "sealed":
            _obey_permissions()
            (folder / "sealed").mkdir()
            (folder / "sealed" / "file").touch()
            (folder / "sealed").chmod(0o500)
        case "file":
            folder.rmdir()
            folder.touch()
        case "link":
            folder.rmdir()
            folder.symlink_to("/")
        case "deep":
            os.chdir(folder)
            for _ in range(1_500):
                os.mkdir("down")
                os.chdir("down")
    return {"found": found, "pid": os.getpid()}


def _obey_permissions() -> None:
    """Without the capabilities of root, which sees no permissions."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, data)


def chatty(payload: dict, context: Any) -> dict:
    for number in range(100_000):
        context.progress(number / 100_000, f"step {number}")
    context.progress(1, "done")
    return {}


def polite(payload: dict, context: Any) -> dict:
    context.progress(0, "running")
    while True:
        context.check_cancelled()
        time.sleep(0.005)


async def polite_async(payload: dict, context: Any) -> dict:
    context.progress(0, "running")
    await asyncio.sleep(3600)
    return {}


# --- death ---


def segfault(payload: dict) -> dict:
    ctypes.string_at(0)
    return {}


def abort(payload: dict) -> dict:
    os.abort()


def exits(payload: dict) -> dict:
    os._exit(payload.get("code", 0))


def kills_group(payload: dict) -> dict:
    os.killpg(0, signal.SIGKILL)
    return {}


# --- endlessness ---


def spins(payload: dict) -> dict:
    while True:
        pass


def spins_in_c(payload: dict) -> dict:
    re.match(r"(a+)+$", "a" * 64 + "b")  # holds the GIL for ages
    return {}


def ignores_signals(payload: dict) -> dict:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            while True:
                time.sleep(1)
        except BaseException:
            continue


def stops_itself(payload: dict) -> dict:
    os.kill(os.getpid(), signal.SIGSTOP)
    return {}


def stubborn(payload: dict, context: Any) -> dict:
    context.progress(0, "running")
    while True:
        try:
            context.check_cancelled()
            time.sleep(0.005)
        except BaseException:
            continue


# --- greed ---


def eats_memory(payload: dict) -> dict:
    hoard = []
    while True:
        hoard.append(b"\xff" * 4_000_000)


def eats_memory_in_a_child(payload: dict) -> dict:
    program = "hoard = []\nwhile True: hoard.append(b'\\xff' * 4_000_000)"
    subprocess.run([sys.executable, "-c", program], check=False)
    return {}


def eats_memory_without_its_main_thread(payload: dict) -> dict:
    """Whose process is a zombie to those who look at its first thread only."""
    threading.Thread(target=eats_memory_slowly).start()
    ctypes.CDLL(None).pthread_exit(None)


def eats_memory_slowly() -> None:
    hoard = []
    while True:
        hoard.append(b"\xff" * 4_000_000)
        time.sleep(0.002)  # so that the limit finds it, and not the end of the machine's memory


def keeps_memory(payload: dict) -> dict:
    _hoard.append(b"\xff" * payload["bytes"])
    time.sleep(0.2)  # to be seen with it
    return {"pid": os.getpid()}


_hoard: list[bytes] = []


class LargeOnceSetUp:
    """Holds most of what it may have from the start."""

    name = "large_once_set_up"

    def setup(self) -> None:
        self.model = b"\xff" * 120_000_000

    def run(self, payload: dict) -> dict:
        return {"pid": os.getpid()}


def asks_for_everything(payload: dict) -> dict:
    return {"size": len(bytearray(10**12))}


def asks_for_endless_memory(payload: dict) -> dict:
    return {}


asks_for_endless_memory.memory_mb = 1e305


def uses_up_descriptors(payload: dict) -> dict:
    kept = []
    while True:
        kept.append(os.open("/dev/null", os.O_RDONLY))


def prints(payload: dict) -> dict:
    line = "x" * 999
    for _ in range(payload["megabytes"] * 1000):
        print(line)
    print("the last line")
    sys.stdout.flush()
    if payload.get("then") == "die":
        os._exit(3)
    return {}


# --- mischief ---


def closes_descriptors(payload: dict) -> dict:
    os.closerange(0, payload.get("up_to", 10))
    return {"closed": True}


async def harms_its_loop(payload: dict) -> dict:
    match payload.get("do"):
        case "close":
            os.closerange(3, 256)
        case "stop":
            asyncio.get_running_loop().stop()
        case "stop later":
            _kept.append(asyncio.create_task(_stops_when_cancelled()))
        case "start again":
            _kept.append(asyncio.create_task(_starts_again(payload["trace"])))
    await asyncio.sleep(0.1)
    if "trace" in payload and payload["do"] == "stop":
        Path(payload["trace"]).write_text("it went on")
    return {"pid": os.getpid()}


async def _stops_when_cancelled() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)


async def _starts_again(trace: str) -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        _kept.append(asyncio.create_task(_writes_later(trace)))


async def _writes_later(trace: str) -> None:
    await asyncio.sleep(0.05)
    Path(trace).write_text("it went on")


_kept: list[asyncio.Task] = []


def writes_rubbish(payload: dict) -> dict:
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), bytes.fromhex(payload["hex"]))
        except OSError:
            continue
    time.sleep(payload.get("seconds", 3600))
    return {}


class LeavesATimer:
    name = "leaves_a_timer"

    def setup(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 60)

    def run(self, payload: dict) -> dict:
        if "timer" in payload:
            signal.setitimer(payload["timer"], payload["seconds"])
        ends = time.monotonic() + payload.get("spins", 0)
        while time.monotonic() < ends:
            pass
        return {"pid": os.getpid(), "is_running": signal.getitimer(signal.ITIMER_REAL) != (0, 0)}


def leaves_an_alarm(payload: dict) -> dict:
    if "rings" in payload:
        signal.setitimer(signal.ITIMER_REAL, payload["rings"])
    time.sleep(payload.get("seconds", 0))
    return {"pid": os.getpid()}


def forges(payload: dict) -> dict:
    """Says what only its worker may say, then returns."""
    for kind, header, seconds in payload.get("frames", ()):
        text = json.dumps(header).encode()
        frame = struct.pack("<BII", kind, len(text), 0) + text
        writes_rubbish({"hex": frame.hex(), "seconds": seconds})
    return {"n": payload.get("n")}


def raises(payload: dict) -> dict:
    raise ValueError(payload.get("message", "a wrong value"))


def blames_the_input(payload: dict) -> dict:
    raise InputInvalidError([FieldProblem("/a", "is not what run likes")])


def system_exit(payload: dict) -> dict:
    sys.exit(payload.get("code"))


def keyboard_interrupt(payload: dict) -> dict:
    raise KeyboardInterrupt


def stop_iteration(payload: dict) -> dict:
    raise StopIteration(1)


class TwoArgumentsError(Exception):
    def __init__(self, first: Any, second: Any) -> None:
        super().__init__(f"{first} and {second}")

    def __reduce__(self) -> Any:
        return os._exit, (86,)


def unpicklable(payload: dict) -> dict:
    raise TwoArgumentsError("this", "that")


class MutedError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


def hostile_text(payload: dict) -> dict:
    raise MutedError


def long_message(payload: dict) -> dict:
    raise ValueError("\0\ud800" + "long " * 2_000_000)


async def cancels_itself(payload: dict) -> dict:
    raise asyncio.CancelledError


# --- results that are none ---


class Foreign:
    def __reduce__(self) -> Any:
        return os._exit, (86,)


class Exploding(dict):
    def items(self) -> Any:
        raise SystemExit("no items")


def returns(payload: dict) -> Any:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    return {
        "bytes": lambda: b"top",
        "list": lambda: [1],
        "none": lambda: None,
        "nan": lambda: {"value": float("nan")},
        "huge integer": lambda: {"value": 2**63},
        "nul": lambda: {"value": "a\0b"},
        "surrogate": lambda: {"value": "\ud800"},
        "key": lambda: {1: "one"},
        "set": lambda: {"value": {1, 2}},
        "cycle": lambda: cycle,
        "deep": lambda: _deep(5_000),
        "foreign": lambda: {"value": Foreign()},
        "large bytes": lambda: {"value": bytes(200_000_000)},
        "many bytes": lambda: {"value": [b"x"] * 60_000},
        "large text": lambda: {"value": "x" * 5_000_000},
        "reserved": lambda: {"$bytes": 0},
    }[payload["what"]]()


def _deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"down": value}
    return value


def exploding_result(payload: dict) -> Any:
    return Exploding(a=1)


def large_artifacts(payload: dict, context: Any) -> dict:
    for number in range(payload.get("count", 100)):
        context.artifact(f"{number:0190}.bin", bytes(payload.get("size", 10_000_000)))
    if "raise" in payload:
        raise ValueError(payload["raise"])
    return {"text": "x" * payload["text"]} if "text" in payload else {}


# --- families ---


def forks(payload: dict) -> dict:
    os.fork()
    return {"pid": os.getpid()}


def leaves_a_process(payload: dict) -> dict:
    """A grandchild in a session of its own, whose parent is dead."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve("/bin/sleep", ["sleep", "3600"], dict(os.environ) if payload.get("marked", True) else {})
        os._exit(0)
    if payload.get("then") == "hang":
        time.sleep(3600)
    if payload.get("then") == "die":
        time.sleep(0.1)
        os._exit(1)
    return {"pid": os.getpid()}


def hides_a_process(payload: dict) -> dict:
    """In a session of its own, without parent, environment or name; its id is in the file that the payload names."""
    trace = Path(payload["trace"])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(1, 0)  # no signal when its parent dies
            trace.with_suffix(".new").write_text(str(os.getpid()))
            trace.with_suffix(".new").rename(trace)
            os.execve("/bin/sleep", ["kworker", "60"], {})
        os._exit(0)
    while not trace.exists():
        time.sleep(0.001)  # it is nobody's child here that could be waited for
    match payload["then"]:
        case "die":
            os._exit(1)
        case "kill its group":
            os.killpg(0, signal.SIGKILL)
        case "end its main thread":
            threading.Timer(0.1, os._exit, [0]).start()
            ctypes.CDLL(None).pthread_exit(None)
        case "stop its keeper":
            os.kill(os.getppid(), signal.SIGSTOP)
        case "hang":
            time.sleep(3600)  # until it is killed
    return {}


def kills_its_keeper(payload: dict) -> dict:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)  # until it is killed
    return {}


class Helped:
    """Starts a helper once; that one may stay."""

    name = "helped"

    def setup(self) -> None:
        self.helper = subprocess.Popen(["/bin/sleep", "3600"])

    def run(self, payload: dict) -> dict:
        return {"pid": os.getpid(), "helper": self.helper.pid, "alive": self.helper.poll() is None}


# --- set-up ---


class SetupRaises:
    name = "setup_raises"

    def setup(self) -> None:
        raise RuntimeError("no model")

    def run(self, payload: dict) -> dict:
        return {}


class SetupHangs:
    name = "setup_hangs"
    setup_timeout_s = 0.5

    def setup(self) -> None:
        time.sleep(3600)

    def run(self, payload: dict) -> dict:
        return {}


class SetupCrashes:
    name = "setup_crashes"

    def setup(self) -> None:
        os._exit(4)

    def run(self, payload: dict) -> dict:
        return {}


class SlowSetup:
    """Its set-up takes longer than its time limit, which is for `run`."""

    name = "slow_setup"
    timeout_s = 0.5
    setup_timeout_s = 20

    def setup(self) -> None:
        time.sleep(0.8)

    def run(self, payload: dict) -> dict:
        return {"ready": True}
