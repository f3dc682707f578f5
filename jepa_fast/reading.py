"""What commands read of files that others may have written: JSON, checked in full before anything is done with it."""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jepa_fast.errors import InputError, require

Config = TypeVar("Config")

# What comes of taking JSON of one layout for that of another; InputError is a ValueError.
MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, RecursionError)


def read_json(path: Path, what: str, place: str | None = None, remedy: str = "") -> Any:
    """The content of a JSON file that should hold `what`, in `place` if that is what a user named.

    Raises:
        InputError: there is no file, or it holds anything but JSON with finite numbers; the `remedy` at its end.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; expected {place or what}")
    try:
        require(path.is_file(), str(path), "no file", place or what)
        return parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: not {what} (not JSON: {error}){remedy}") from error


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each behind its place, such as "metrics.jsonl, line 7"; none without a file.

    A last line without its line feed was cut short when its writer was killed, and is left out.

    Raises:
        InputError: another line is not a JSON object, or the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        require(path.is_file(), str(path), "no file", "a file of JSON lines")
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            fields = parse_json(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error}); remove the line") from error
        if not isinstance(fields, dict):
            raise InputError(f"{where}: found a {type(fields).__name__}, expected a JSON object; remove the line")
        found.append((where, fields))
    return found


def parse_json(text: bytes) -> Any:
    """What UTF-8 JSON text says.

    Raises:
        ValueError: it is none, a number is not finite or has hundreds of digits, or it is nested too deeply.
    """
    try:
        return json.loads(text.decode(), parse_constant=_number, parse_float=_number, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _integer(text: str) -> int:
    if len(text) > 300:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def is_finite(value: object) -> bool:
    """Whether a value is a finite number; a boolean is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_finite(config: Any, name: str) -> None:
    """Raise InputError, naming the field, if a number anywhere in a configuration is not finite."""
    if dataclasses.is_dataclass(config):
        for one in dataclasses.fields(config):
            require_finite(getattr(config, one.name), f"{name}.{one.name}")
    elif isinstance(config, Mapping):
        for key, value in config.items():
            require_finite(value, f"{name}.{key}")
    elif isinstance(config, tuple | list):
        for index, value in enumerate(config):
            require_finite(value, f"{name}.{index}")
    elif isinstance(config, float):
        require(math.isfinite(config), name, config, "a finite number")


def described(error: Exception) -> str:
    """What one of MALFORMED says of a file's content."""
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing or unknown"
    return str(error)


def decode(annotation: type[Config], value: Any, name: str) -> Config:
    """What `annotation` says, from its JSON: the inverse of `json.dumps(dataclasses.asdict(...))`.

    Takes dataclasses, whose fields with defaults may be missing, unions of them told apart by their `kind`, optional
    values, lists, tuples, mappings from names, literals and plain values.

    Raises:
        InputError: a value that does not fit, or a field that is unknown or missing, by its dotted name.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    result: Any = value
    if dataclasses.is_dataclass(annotation):
        require(isinstance(value, Mapping), name, value, "a JSON object")
        known = {one.name: one for one in dataclasses.fields(annotation)}
        for key in value:
            require(key in known, f"{name}.{key}", value[key], f"no such field, known are {', '.join(known)}")
        for key, one in known.items():
            optional = one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
            require(key in value or optional, f"{name}.{key}", None, "a value")
        hints = get_type_hints(annotation)
        result = annotation(**{key: decode(hints[key], one, f"{name}.{key}") for key, one in value.items()})
    elif origin in (Union, types.UnionType):
        members = [part for part in parts if part is not types.NoneType]
        if len(members) == 1:
            result = None if value is None else decode(members[0], value, name)
        else:
            kinds = {member.kind: member for member in members}
            kind = value.get("kind") if isinstance(value, Mapping) else None
            require(kind in kinds, f"{name}.kind", kind, f"one of {', '.join(kinds)}")
            result = decode(kinds[kind], value, name)
    elif origin is list:
        require(isinstance(value, list), name, value, "a list")
        result = [decode(parts[0], one, f"{name}[{index}]") for index, one in enumerate(value)]
    elif origin is tuple:
        require(isinstance(value, list | tuple), name, value, "a list")
        each = parts[:1] * len(value) if parts[-1] is ... else parts
        require(len(each) == len(value), name, value, f"{len(each)} values")
        pairs = enumerate(zip(each, value, strict=True))
        result = tuple(decode(kind, one, f"{name}[{index}]") for index, (kind, one) in pairs)
    elif origin is Mapping:
        require(isinstance(value, Mapping), name, value, "a JSON object")
        result = {str(key): decode(parts[1], one, f"{name}.{key}") for key, one in value.items()}
    elif origin is Literal:
        # By type too: 1 is no true, and 1.0 no 1.
        known_values = [part for part in parts if type(part) is type(value)]
        require(value in known_values, name, value, f"one of {', '.join(map(repr, parts))}")
    elif annotation is float:
        # None in a file is infinite or NaN; who reads one may have put NaN in the place of what is not known.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        require(is_number and abs(value) != math.inf, name, value, "a number")
    else:
        whole = isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))
        whole = whole and (annotation is not int or abs(value) < 2**63)
        require(whole, name, value, f"a value of type {annotation.__name__}")
    decoded: Config = result
    return decoded
