"""What each hostile plugin must end in where a worker may take 200 MB."""

from __future__ import annotations

from typing import Any

#: plugin, payload, type of the error, part of its details
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("segfault", {}, "WorkerCrashed", {"signal": "SIGSEGV", "phase": "run"}),
    ("abort", {}, "WorkerCrashed", {"signal": "SIGABRT", "phase": "run"}),
    ("exits", {"code": 0}, "WorkerCrashed", {"exit_code": 0, "phase": "run"}),
    ("exits", {"code": 7}, "WorkerCrashed", {"exit_code": 7, "phase": "run"}),
    ("kills_group", {}, "WorkerCrashed", {"signal": "SIGKILL", "phase": "run"}),
    ("kills_its_keeper", {}, "WorkerCrashed", {"signal": "SIGKILL", "phase": "run"}),
    ("spins", {}, "TimeLimitExceeded", {"phase": "run"}),
    ("spins_in_c", {}, "TimeLimitExceeded", {"phase": "run"}),
    ("ignores_signals", {}, "TimeLimitExceeded", {"phase": "run"}),
    ("stops_itself", {}, "TimeLimitExceeded", {"phase": "run"}),
    ("leaves_a_process", {"then": "hang"}, "TimeLimitExceeded", {"phase": "run"}),
    ("leaves_a_process", {"then": "hang", "marked": False}, "TimeLimitExceeded", {"phase": "run"}),
    ("leaves_a_process", {"then": "die"}, "WorkerCrashed", {"exit_code": 1}),
    ("eats_memory", {}, "MemoryLimitExceeded", {"limit_mb": 200, "phase": "run"}),
    ("eats_memory_in_a_child", {}, "MemoryLimitExceeded", {"limit_mb": 200, "phase": "run"}),
    ("eats_memory_without_its_main_thread", {}, "MemoryLimitExceeded", {"limit_mb": 200, "phase": "run"}),
    ("asks_for_everything", {}, "MemoryLimitExceeded", {"limit_mb": 200, "exception": "MemoryError"}),
    ("uses_up_descriptors", {}, "ExecutionError", {"exception": "OSError"}),
    ("writes_rubbish", {"hex": "ff" * 32}, "WorkerCrashed", {"reason": "protocol"}),
    ("writes_rubbish", {"hex": "15ffffffffffffffff"}, "WorkerCrashed", {"reason": "protocol"}),
    ("writes_rubbish", {"hex": "1502000000000000007b7d"}, "WorkerCrashed", {"reason": "protocol"}),
    ("closes_descriptors", {"up_to": 4096}, "WorkerCrashed", {}),
    ("raises", {}, "ExecutionError", {"exception": "ValueError"}),
    ("blames_the_input", {}, "ExecutionError", {"exception": "InputInvalidError"}),
    ("system_exit", {"code": 3}, "ExecutionError", {"exception": "SystemExit"}),
    ("keyboard_interrupt", {}, "ExecutionError", {"exception": "KeyboardInterrupt"}),
    ("stop_iteration", {}, "ExecutionError", {"exception": "StopIteration"}),
    ("unpicklable", {}, "ExecutionError", {"exception": "TwoArgumentsError"}),
    ("hostile_text", {}, "ExecutionError", {"exception": "MutedError"}),
    ("long_message", {}, "ExecutionError", {"exception": "ValueError"}),
    ("cancels_itself", {}, "ExecutionError", {"exception": "CancelledError"}),
    ("exploding_result", {}, "InvalidOutput", {}),
    ("large_artifacts", {}, "InvalidOutput", {}),
    *(
        ("returns", {"what": what}, "InvalidOutput", {"pointer": pointer})
        for what, pointer in {
            "bytes": "",
            "list": "",
            "none": "",
            "nan": "/value",
            "huge integer": "/value",
            "nul": "/value",
            "surrogate": "/value",
            "key": "",
            "set": "/value",
            "foreign": "/value",
            "large bytes": "",
            "large text": "",
            "reserved": "",
        }.items()
    ),
    ("returns", {"what": "cycle"}, "InvalidOutput", {}),
    ("returns", {"what": "deep"}, "InvalidOutput", {}),
    ("setup_raises", {}, "PluginError", {"exception": "RuntimeError", "phase": "setup"}),
    ("setup_hangs", {}, "TimeLimitExceeded", {"limit_s": 0.5, "phase": "setup"}),
    ("setup_crashes", {}, "WorkerCrashed", {"exit_code": 4, "phase": "setup"}),
    ("missing_module", {}, "PluginError", {"exception": "ModuleNotFoundError", "phase": "import"}),
    ("missing_attribute", {}, "PluginError", {}),
    ("not_installed", {}, "PluginError", {}),
    ("typed", {"width": "wide"}, "ValidationError", {}),
]
