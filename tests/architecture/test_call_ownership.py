"""Only ToolRunner calls a plugin, only JobManagementService asks for it, and nothing is unpickled."""

from __future__ import annotations

import pytest

from .walls import breaches_of_call_ownership, breaches_of_serialization, modules


def test_no_module_crosses_the_wall_around_plugins() -> None:
    assert [str(breach) for name, source in modules() for breach in breaches_of_call_ownership(name, source)] == []


def test_nothing_in_the_service_can_build_objects_out_of_bytes() -> None:
    assert [str(breach) for name, source in modules() for breach in breaches_of_serialization(name, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("service.job_management", "plugin.run(payload)"),
        ("service.job_management", "loop.run_in_executor(pool, plugin.run, payload)"),
        ("service.job_management", "call = self._plugins[name].run"),
        ("service.job_management", "getattr(plugin, 'run')(payload)"),
        ("service.job_management", "operator.methodcaller('run', payload)(plugin)"),
        ("service.job_management", "match plugin:\n    case Plugin(run=call): call()"),
        ("service.job_management", "self._tool_runner.run(name, payload)"),
        ("service.api.handlers", "from service.plugins.builtin.echo import run"),
        ("service.plugin_management", "self._loaded.run(payload)"),
        ("service.plugins.loading", "plugin.run(payload)"),
        ("service.plugins.loading", "asyncio.create_task(loaded.run(payload))"),
        ("service.plugins.context", "inspect.signature(plugin.run)"),
        ("service.api.handlers", "await plugins.execute_plugin(name, payload)"),
        ("service.dispatcher", "execute = self._plugin_management.execute_plugin"),
        ("service.dispatcher", "getattr(manager, 'execute_plugin')"),
        ("service.tool_runner.runner", "self.manager.execute_plugin()"),
        ("service.api.handlers", "async def execute_plugin(plugin_name, payload): ..."),
        ("service.app", "runner = ToolRunner(pool, sources, settings)\nrunner.run(name, payload)"),
        ("service.app", "with asyncio.Runner() as runner: runner.run(serve())\nrunner.run(name, payload)"),
        ("service.app", "ToolRunner(pool, sources, settings).run(name, payload)"),
    ],
)
def test_a_planted_call_is_caught(module: str, source: str) -> None:
    assert breaches_of_call_ownership(module, source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("service.tool_runner.worker", "loaded.run(*args)"),
        ("service.plugin_management", "return await self._tool_runner.run(plugin_name, payload)"),
        ("service.plugin_management", "async def execute_plugin(self, plugin_name, payload): ..."),
        ("service.job_management", "await self._plugins.execute_plugin(plugin_name=name, payload=payload)"),
        ("service.plugins.loading", "hints = inspect.signature(plugin.run)"),
        ("service.cli", "asyncio.run(main())"),
        ("service.app", "with asyncio.Runner() as runner: runner.run(serve())"),
        ("service.app", "loop = housekeeper.run"),
        ("service.dispatcher", "running = record.run_at"),
    ],
)
def test_the_roles_may_do_their_own_work(module: str, source: str) -> None:
    assert breaches_of_call_ownership(module, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import json, marshal",
        "from pickle import loads",
        "def later():\n    import shelve",
        "importlib.import_module('pickle')",
        "from multiprocessing.connection import Client",
    ],
)
def test_a_planted_serializer_is_caught(source: str) -> None:
    assert breaches_of_serialization("service.tool_runner.pool", source) != []
