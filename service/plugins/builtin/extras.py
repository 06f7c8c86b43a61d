"""What to say where a built-in plugin's library is not installed."""

from __future__ import annotations


def not_installed(extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """`error` with the command that cures it in its text."""
    return ModuleNotFoundError(f"{error}: pip install 'jobservice[{extra}]'", name=error.name)
