"""Loads one plugin inside its worker: imports it, reads what it says about itself, keeps its callables uncalled."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, Final

from service.errors import PluginDefinitionError
from service.models import MAX_ATTEMPTS
from service.plugins.context import Context
from service.plugins.manifest import PluginManifest, PluginSource
from service.plugins.payload import Input, UntypedInput

#: Annotations that take the payload as it comes.
_OPEN: Final = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPlugin:
    """A plugin ready to be called: `setup`, then `run(*args, **kwargs)` with what `bind` made, in the end `teardown`.

    Each of the three may be a coroutine function. `bind(payload, context)` raises `InputInvalidError`; validators that
    the plugin wrote run inside it.
    """

    manifest: PluginManifest
    setup: Callable[[], Any] | None
    run: Callable[..., Any]
    teardown: Callable[[], Any] | None
    bind: Callable[[Mapping[str, Any], Context], tuple[tuple[Any, ...], dict[str, Any]]]


def load(source: PluginSource) -> LoadedPlugin:
    """Import the plugin and describe it.

    Raises `PluginDefinitionError` where it breaks the contract, and lets out whatever its own code raises on import or
    in its constructor.
    """
    plugin = _instance(_imported(source.value))
    run = getattr(plugin, "run", None)
    if run is None and not inspect.ismodule(plugin):
        run = plugin
    if not callable(run):
        raise PluginDefinitionError(f"{source.value} is neither a function nor has it a method run")
    if inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run):
        raise PluginDefinitionError("run returns one result: use return, and context.progress for news, not yield")
    attributes = _attributes(plugin)
    if attributes.pop("name", source.name) != source.name:
        raise PluginDefinitionError(f"its name is {plugin.name!r}, but its entry point is called {source.name!r}")
    hints = _hints(run)
    parameters = _parameters(run)
    accepted = _input([parameter for parameter in parameters if parameter.name != "context"], hints)
    return LoadedPlugin(
        manifest=PluginManifest(
            name=source.name,
            version=attributes.pop("version", source.distribution_version),
            description=attributes.pop("description", None) or _first_line(_unwrapped(plugin)) or _first_line(run),
            input_schema=accepted.schema,
            output_schema=_output_schema(hints.get("return")),
            untyped=isinstance(accepted, UntypedInput),
            **attributes,
        ),
        setup=_hook(plugin, "setup"),
        run=run,
        teardown=_hook(plugin, "teardown"),
        bind=functools.partial(_bind, accepted, parameters),
    )


def _imported(value: str) -> Any:
    """What the entry point `module:attribute` names; a module alone is a plugin too."""
    module_name, _, path = value.partition("[")[0].strip().partition(":")
    target: Any = importlib.import_module(module_name.strip())
    for name in filter(None, path.strip().split(".")):
        if not hasattr(target, name):
            raise PluginDefinitionError(f"{value} does not exist: {target!r} has no attribute {name!r}")
        target = getattr(target, name)
    return target


def _instance(target: Any) -> Any:
    if not inspect.isclass(target):
        return target
    if not _accepts_no_arguments(target):
        raise PluginDefinitionError(f"the constructor of {target.__name__} must not need arguments")
    return target()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 200


def _is_description(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


#: What a plugin may say about itself: how it is checked, and what to say where it is something else.
ATTRIBUTES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = types.MappingProxyType(
    {
        "name": (_is_text, "text"),
        "version": (_is_text, "text of at most 200 printable characters"),
        "description": (_is_description, "text"),
        "timeout_s": (_is_positive, "a number of seconds above 0"),
        "setup_timeout_s": (_is_positive, "a number of seconds above 0"),
        "memory_mb": (_is_positive, "a number of megabytes above 0"),
        "concurrency": (_is_count, "a whole number of at least 1"),
        "max_attempts": (
            lambda value: _is_count(value) and value <= MAX_ATTEMPTS,
            f"a whole number from 1 to {MAX_ATTEMPTS}",
        ),
        "short": (_is_flag, "True or False"),
        "stateful": (
            lambda value: value is False,
            "False: a plugin keeps nothing from one job to the next, because any worker may get the next job",
        ),
    }
)


def _attributes(plugin: Any) -> dict[str, Any]:
    attributes = {name: value for name in ATTRIBUTES if (value := getattr(plugin, name, None)) is not None}
    for name, value in attributes.items():
        is_valid, expected = ATTRIBUTES[name]
        if not is_valid(value):
            raise PluginDefinitionError(f"its attribute {name} must be {expected}, not {value!r}")
        if isinstance(value, float):  # that of numpy is one, but no JSON
            attributes[name] = float(value)
    attributes.pop("stateful", None)
    return attributes


def _first_line(described: Any) -> str:
    return next(iter((getattr(described, "__doc__", None) or "").strip().splitlines()), "")


def _hook(plugin: Any, name: str) -> Callable[[], Any] | None:
    hook = getattr(plugin, name, None)
    if hook is None:
        return None
    if not callable(hook) or not _accepts_no_arguments(hook):
        raise PluginDefinitionError(f"{name} must be a method without arguments")
    return hook  # type: ignore[no-any-return]  # callable, as checked


def _accepts_no_arguments(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # written in C and without a signature: its call will tell
        return True
    return True


def _parameters(run: Any) -> Sequence[Parameter]:
    try:
        parameters = list(inspect.signature(run).parameters.values())
    except (TypeError, ValueError) as error:
        raise PluginDefinitionError("the signature of run cannot be read: wrap it into a def") from error
    for parameter in parameters:
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            raise PluginDefinitionError(f"run takes {parameter}: name every argument, or take one named payload")
    return parameters


def _unwrapped(function: Any) -> Any:
    """What somebody wrote, under decorators and `functools.partial`, which has a docstring of its own."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function


def _hints(run: Any) -> dict[str, Any]:
    """The evaluated annotations of `run`, all but that of `context`, whose type need not be importable."""
    function = _unwrapped(run)
    if not inspect.isroutine(function):
        function = type(function).__call__
    annotations = {name: hint for name, hint in getattr(function, "__annotations__", {}).items() if name != "context"}
    holder = types.SimpleNamespace(__annotations__=annotations)
    try:
        return typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}), include_extras=True)
    except Exception as error:
        raise PluginDefinitionError(f"an annotation of run cannot be evaluated: {error}") from error


def _input(parameters: Sequence[Parameter], hints: Mapping[str, Any]) -> Input:
    """What `run` accepts; a single parameter named `payload`, or a dict or pydantic model, takes the whole payload."""
    is_whole = len(parameters) == 1 and (parameters[0].name == "payload" or _is_whole(hints.get(parameters[0].name)))
    if is_whole and _is_open(hints.get(parameters[0].name, dict)):
        return UntypedInput(parameters[0].name)
    for parameter in parameters:
        if parameter.name not in hints:
            raise PluginDefinitionError(
                f"the argument {parameter.name} of run has no annotation: give it a type, or take one named payload"
            )
    # Pydantic takes longer to import than all the rest of a worker; plugins without types start without it.
    from service.plugins.schema import TypedInput

    if is_whole:
        return TypedInput.of_payload(parameters[0], hints[parameters[0].name])
    return TypedInput.of_parameters(parameters, hints)


def _is_whole(hint: Any) -> bool:
    pydantic = sys.modules.get("pydantic")  # who annotates with a pydantic model has imported it
    is_model = pydantic is not None and isinstance(hint, type) and issubclass(hint, pydantic.BaseModel)
    return is_model or _is_open(hint)


def _is_open(hint: Any) -> bool:
    if hint is Any or hint in _OPEN:
        return True
    return typing.get_origin(hint) in _OPEN and typing.get_args(hint) in {(str, Any), (str, object)}


def _output_schema(hint: Any) -> dict[str, Any] | None:
    if hint is None or hint is type(None) or _is_open(hint):
        return None
    from service.plugins.schema import output_schema  # late for the reason given in `_input`

    return output_schema(hint)


def _bind(
    accepted: Input, parameters: Sequence[Parameter], payload: Mapping[str, Any], context: Context
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    values = accepted.arguments(payload)
    if any(parameter.name == "context" for parameter in parameters):
        values["context"] = context
    positional = [parameter.name for parameter in parameters if parameter.kind is Parameter.POSITIONAL_ONLY]
    return tuple(values.pop(name) for name in positional), values
