"""What callers pass as texts and pairs, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence

from crossforge.profiles import InputError

MAX_TEXT_CHARS = 500_000
"""Longest text that is accepted. A model reads a few thousand characters of it; more is a file passed by mistake."""


def check_list(value: object, name: str, items: str) -> None:
    """Make sure that something is a list or a tuple, and no lone string, which is a sequence too.

    Args:
        value: What was passed.
        name: What an error calls it.
        items: What an error says that it should hold.

    Raises:
        InputError: It is not.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InputError(f"{name} must be a list", got=_describe(value), allowed=f"a list or tuple of {items}")


def check_pair(pair: object, position: int) -> None:
    """Make sure that an item of a list is a pair; what it is a pair of is not looked at.

    Raises:
        InputError: It is not.
    """
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise InputError(f"pair {position} is not a pair", got=_describe(pair), allowed="(query, passage)")


def check_query(query: object, what: str) -> None:
    """Make sure that a query can be used.

    Raises:
        InputError: It is blank, or as :func:`check_text`.
    """
    check_text(query, what)
    if not str(query).strip():
        raise InputError(f"{what} is empty", got=repr(query), allowed="a text that is not blank")


def check_text(text: object, what: str) -> None:
    """Make sure that a text can be used.

    Raises:
        InputError: It is not a string, is longer than :data:`MAX_TEXT_CHARS`, or holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} is not a string", got=_describe(text), allowed="str")
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(
            f"{what} is too long",
            got=f"{len(text):,} characters",
            allowed=f"up to {MAX_TEXT_CHARS:,}",
            fix="Split it into passages; a cross-encoder reads only the first few hundred tokens.",
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{what} is not valid Unicode", got=f"a lone surrogate at character {error.start}") from error


def check_texts(texts: Sequence[object], what: str) -> None:
    """Make sure that texts can be used; ``what`` is what an error calls one, before its position.

    Raises:
        InputError: As :func:`check_text`.
    """
    for position, text in enumerate(texts):
        check_text(text, f"{what} {position}")


def _describe(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
