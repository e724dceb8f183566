"""The tail of a task's spec: ``HEAD,name=value,name=value``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from llm.tasks.base import TaskError

__all__ = ["boolean", "literal", "read_options"]


def literal(text: str) -> Any:
    """The Python literal that a text spells (a number, True, a list, ...), or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def boolean(text: str) -> bool:
    """``True`` or ``False``, spelled so. Raises ValueError for anything else."""
    if text not in ("True", "False"):
        raise ValueError(f"expected True or False, got {text!r}")
    return text == "True"


def read_options(spec: str, kinds: Mapping[str, Callable[[str], Any]] | None) -> tuple[str, dict[str, Any]]:
    """(head, options) of a spec without its family. `kinds` maps each option to its type; None allows any, as literals.

    Commas inside brackets do not separate. Example: ``"a,b=1,c=[2,3]"`` -> ``("a", {"b": 1, "c": [2, 3]})``.
    Raises TaskError for an option that is unknown, named twice, or not of its type.
    """
    head, *parts = _split(spec)
    options: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not name:
            raise TaskError(f"cannot read {part!r} in {spec!r}: options are written name=value")
        if name in options:
            raise TaskError(f"option {name!r} is given twice in {spec!r}")
        if kinds is not None and name not in kinds:
            raise TaskError(f"no option {name!r} in {spec!r}; there are: {', '.join(kinds) or 'none'}")
        kind = literal if kinds is None else kinds[name]
        try:
            options[name] = kind(value.strip())
        except ValueError:
            raise TaskError(f"option {name}={value!r} in {spec!r} has the wrong type") from None
    return head.strip(), options


def _split(spec: str) -> list[str]:
    parts, depth = [""], 0
    for char in spec:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        if char == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts
