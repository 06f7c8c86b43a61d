"""What import-linter cannot see: who mentions a plugin's `run` and `execute_plugin`, found in the syntax tree."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "service"

#: May mention `run` of anything.
RUNNERS = ("service.tool_runner",)
#: May look at a plugin's `run` (to describe it), never call it.
INSPECTORS = ("service.plugins.loading", "service.plugins.schema")
#: Whose `run` is no plugin's: the event loop's, the loops that the wiring starts and, in the hand-over, ToolRunner's.
OTHER_RUNS = {"asyncio", "subprocess"}
LOOPS = {
    "service.app": {
        "Bookkeeper", "dispatcher", "housekeeper", "LeaseKeeper", "Pruner", "Rescuer", "Scheduler", "deliverer",
    }
}  # fmt: skip
HAND_OVER = "service.plugin_management"
#: Where `execute_plugin` is defined, and the only role that calls it.
EXECUTE_DEFINITION = "service.plugin_management"
EXECUTE_CALLER = "service.job_management"

#: A module that can build objects out of bytes; what a plugin's process sends is never read that way.
UNSAFE_SERIALIZERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing"}

#: Calls that reach an attribute by its name in a string.
BY_NAME = {"getattr", "hasattr", "setattr", "delattr", "attrgetter", "methodcaller", "getattr_static"}


@dataclasses.dataclass(frozen=True)
class Breach:
    """One place where a wall is crossed."""

    module: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.what}"


def modules() -> Iterator[tuple[str, str]]:
    """Every module of the service: its dotted name and its source."""
    for path in sorted(SERVICE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text()


def breaches_of_call_ownership(module: str, source: str) -> list[Breach]:
    """Mentions of a plugin's `run` outside ToolRunner, and of `execute_plugin` outside its one caller."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    event_loops = _runs_of_event_loops(tree)
    found = []
    for node in ast.walk(tree):
        if id(node) in event_loops:
            continue
        for name, owner in _mentions(node):
            if name == "run" and not _may_mention_run(module, owner, is_called=id(node) in called):
                found.append(Breach(module, node.lineno, "only service.tool_runner may touch the `run` of a plugin"))
            elif name == "execute_plugin" and module != EXECUTE_CALLER:
                found.append(Breach(module, node.lineno, f"only {EXECUTE_CALLER} may mention `execute_plugin`"))
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "execute_plugin"
        if is_definition and module != EXECUTE_DEFINITION:
            found.append(Breach(module, node.lineno, f"`execute_plugin` belongs to {EXECUTE_DEFINITION}"))
    return found


def breaches_of_serialization(module: str, source: str) -> list[Breach]:
    """Imports, however written, of modules that build objects out of bytes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and _last_name(node.func) in {"import_module", "__import__"}:
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            continue
        found += [
            Breach(module, node.lineno, f"{name} can build any object out of bytes; frames are JSON and raw bytes")
            for name in names
            if name.partition(".")[0] in UNSAFE_SERIALIZERS
        ]
    return found


def _mentions(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Names of attributes that `node` mentions, each with the name of what they are taken from."""
    match node:
        case ast.Attribute(value=value, attr=attr):
            yield attr, _last_name(value)
        case ast.Call(func=func, args=args) if _last_name(func) in BY_NAME:
            for arg in args:
                if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
                    yield arg.value, None
        case ast.MatchClass(kwd_attrs=names):
            for name in names:
                yield name, None
        case ast.ImportFrom(names=aliases):
            for alias in aliases:
                yield alias.name, node.module


def _may_mention_run(module: str, owner: str | None, *, is_called: bool) -> bool:
    if _within(module, RUNNERS) or owner in OTHER_RUNS or owner in LOOPS.get(module, ()):
        return True
    if module == HAND_OVER:
        return owner is not None and owner.strip("_") == "tool_runner"
    return _within(module, INSPECTORS) and not is_called


def _runs_of_event_loops(tree: ast.Module) -> set[int]:
    """The mentions of an `asyncio.Runner` inside the `with` block that made it."""
    return {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.With)
        for item in block.items
        if isinstance(item.context_expr, ast.Call) and ast.unparse(item.context_expr.func) == "asyncio.Runner"
        for inner in ast.walk(block)
        if isinstance(inner, ast.Attribute)
        and isinstance(inner.value, ast.Name)
        and isinstance(item.optional_vars, ast.Name)
        and inner.value.id == item.optional_vars.id
    }


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _last_name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=func):
            return _last_name(func)
    return None
