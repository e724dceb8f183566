"""One config dataclass per command, and one command line made from it.

A field's help text is written once, in the field's `metadata`. Values come from, in rising order of precedence, the
defaults, a YAML file (``--config FILE``), and the command line. A bad value is a `ConfigError`: one line that says
what to do; `run_command` prints it and exits with status 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

__all__ = ["USER_ERRORS", "ConfigError", "config_from_args", "listing", "mapping", "option", "run_command", "to_yaml"]

ConfigT = TypeVar("ConfigT")

_WORDS = tuple[str, ...]

USER_ERRORS = frozenset({"ConfigError", "TaskError", "RunError", "MDPError"})
"""Names of the errors whose message is for the user; by name, so that printing one imports nothing."""


class ConfigError(ValueError):
    """The command cannot run as asked; the message is one line that says what to do."""


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A config field with its help text and, for a closed set of values, its choices."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def mapping(help: str) -> Any:
    """A config field that holds a mapping, empty by default; on the command line it is YAML text."""
    return dataclasses.field(default_factory=dict, metadata={"help": help, "choices": None})


def listing(help: str) -> Any:
    """A config field that holds words, none by default; on the command line they follow one flag."""
    return dataclasses.field(default=(), metadata={"help": help, "choices": None})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_field(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], kind: Any) -> None:
    choices = field.metadata["choices"]
    shown = f" One of: {', '.join(choices)}." if choices else ""
    default = field.default if field.default not in (None, "", (), dataclasses.MISSING) else "none"
    text = f"{field.metadata['help']}{shown} [{default}]".replace("%", "%%")
    if kind is bool:
        parser.add_argument(
            _flag(field.name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
    elif kind == _WORDS:
        parser.add_argument(_flag(field.name), default=argparse.SUPPRESS, help=text, metavar="STR", nargs="+")
    else:
        parser.add_argument(_flag(field.name), default=argparse.SUPPRESS, help=text, metavar=kind.__name__.upper())


def _mapping(name: str, value: Any) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        loaded = None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{name} must be a mapping such as {{name: value}}, got {value!r}")
    return loaded


def _words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f"{name} must be a list of words such as [one, two], got {value!r}")
    return tuple(value)


def _convert(cls: type, name: str, value: Any, kind: Any) -> Any:
    """A value from a YAML file or the command line as the field's type; a mapping may be given as YAML text."""
    if kind is Mapping:
        return _mapping(name, value)
    if kind == _WORDS:
        return _words(name, value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, got {value!r}")
        return value
    try:
        converted = kind(value) if not (kind is int and isinstance(value, float) and value != int(value)) else None
    except (TypeError, ValueError):
        converted = None
    if converted is None or isinstance(value, bool | list | dict):
        raise ConfigError(f"{name} must be a {kind.__name__}, got {value!r}")
    choices = next(f for f in dataclasses.fields(cls) if f.name == name).metadata["choices"]
    if choices and converted not in choices:
        raise ConfigError(f"unknown {name} {value!r}; choose one of: {', '.join(choices)}")
    return converted


def _read_yaml(cls: type, path: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {place}") from error
    if not isinstance(loaded or {}, dict):
        raise ConfigError(f"{path} must hold `field: value` lines")
    names = [f.name for f in dataclasses.fields(cls)]
    for key in loaded or {}:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are: {', '.join(names)}"
            raise ConfigError(f"unknown field {key!r} in {path}; {hint}")
    return dict(loaded or {})


def config_from_args(cls: type[ConfigT], argv: Sequence[str] | None, prog: str) -> ConfigT:
    """The config of a command from its command line. Raises ConfigError; ``--help`` prints every field and exits."""
    description = inspect.cleandoc(cls.__doc__ or "")
    parser = _Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default=None, metavar="FILE", help="A YAML file of `field: value` lines.")
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        _add_field(parser, field, kinds[field.name])
    given = vars(parser.parse_args(argv))
    path = given.pop("config")
    values = (_read_yaml(cls, path) if path else {}) | given
    return cls(**{name: _convert(cls, name, value, kinds[name]) for name, value in values.items()})


def to_yaml(config: Any) -> str:
    """The config as YAML that ``--config`` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def _how_to_go_on(cls: type) -> str:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if "resume" not in fields:
        return "run it again from the start"
    names_its_folder = "output" in fields and fields["output"].default == ""
    return "run the same command with --resume" + (
        ", and --output with the run folder named above if you gave none, to go on" if names_its_folder else " to go on"
    )


def run_command(main: Callable[[ConfigT], object], cls: type[ConfigT], prog: str) -> NoReturn:
    """Run a command: user errors are one line and exit status 2, an interrupt is exit status 130."""
    try:
        main(config_from_args(cls, None, prog))
    except ValueError as error:
        if type(error).__name__ not in USER_ERRORS:
            raise
        print(f"{prog}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted; {_how_to_go_on(cls)}", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
