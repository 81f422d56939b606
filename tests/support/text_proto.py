"""Just enough of protobuf's text format to read a ``config.pbtxt``."""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(r'\s*(?:#[^\n]*\s*)*("[^"\\\n]*"|[\w.+-]+|[{}\[\]:,])')


def parse_text_proto(text: str) -> dict[str, Any]:
    """A message as a dict; a field in brackets is a list."""
    tokens = [*_tokenize(text), "}"]
    message = _message(tokens)
    assert not tokens, f"unbalanced: {tokens[:3]}"
    return message


def _tokenize(text: str) -> list[str]:
    text, tokens, position = text.rstrip(), [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match, f"not text format: {text[position : position + 40]!r}"
        tokens.append(match[1])
        position = match.end()
    return tokens


def _message(tokens: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    while (name := tokens.pop(0)) != "}":
        assert re.fullmatch(r"[a-z_]+", name), name
        assert name not in fields, f"{name} is there twice"
        if tokens[0] == ":":
            tokens.pop(0)
        else:
            assert tokens[0] in "{[", f"{name} has no value"
        fields[name] = _value(tokens)
    return fields


def _value(tokens: list[str]) -> Any:
    token = tokens.pop(0)
    if token == "{":
        return _message(tokens)
    if token == "[":
        values = [_value(tokens)]
        while (separator := tokens.pop(0)) != "]":
            assert separator == ","
            values.append(_value(tokens))
        return values
    if token.startswith('"'):
        return token[1:-1]
    if token in ("true", "false"):
        return token == "true"
    return int(token) if re.fullmatch(r"-?\d+", token) else token
