"""Strict conversion between JSON values and frozen dataclasses.

Small on purpose: it knows the types that a manifest is made of (str, int, float, bool, None, enums, tuples, string-keyed
dicts, dataclasses and unions with None), rejects everything else, and names the JSON path of what it rejects.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, cast

T = TypeVar("T")


class DecodeError(ValueError):
    """A JSON value does not have the shape that its dataclass declares; the message starts with the JSON path."""


def encode(value: object) -> object:
    """Turn a dataclass tree into plain JSON values, with every field in its declared order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(encode(key)): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], value: object, path: str = "$") -> T:
    """Build ``cls`` from a JSON value.

    Raises:
        DecodeError: A field is missing, unknown or of another type than declared.
    """
    return cast(T, _decode(cls, value, path))


def _decode(hint: Any, value: object, path: str) -> object:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise DecodeError(f"{path}: expected a list, got {_kind(value)}")
        return tuple(_decode(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise DecodeError(f"{path}: expected an object, got {_kind(value)}")
        return {
            _decode(arguments[0], key, path): _decode(arguments[1], item, f"{path}.{key}") for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(cast(type, hint), value, path)
    return _decode_scalar(hint, value, path)


def _decode_union(arguments: tuple[Any, ...], value: object, path: str) -> object:
    if value is None and type(None) in arguments:
        return None
    options = [argument for argument in arguments if argument is not type(None)]
    if len(options) == 1:
        return _decode(options[0], value, path)
    for option in options:
        if type(value) is option:
            return value
    raise DecodeError(f"{path}: expected {' or '.join(option.__name__ for option in options)}, got {_kind(value)}")


def _decode_dataclass(cls: type, value: object, path: str) -> object:
    if not isinstance(value, dict):
        raise DecodeError(f"{path}: expected an object, got {_kind(value)}")
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    names = {field.name for field in fields}
    if unknown := sorted(value.keys() - names):
        raise DecodeError(f"{path}: unknown field {unknown[0]!r}")
    arguments: dict[str, object] = {}
    for field in fields:
        if field.name not in value:
            raise DecodeError(f"{path}: field {field.name!r} is missing")
        arguments[field.name] = _decode(hints[field.name], value[field.name], f"{path}.{field.name}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise DecodeError(f"{path}: {error}") from error


def _decode_scalar(hint: Any, value: object, path: str) -> object:
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            allowed = ", ".join(str(member.value) for member in hint)
            raise DecodeError(f"{path}: expected one of {allowed}, got {value!r}") from None
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise DecodeError(f"{path}: the number is too large") from error
    if type(value) is not hint:
        raise DecodeError(f"{path}: expected {hint.__name__}, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
