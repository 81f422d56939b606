"""The JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crossforge.profiles import SourceError


def read_json(path: Path) -> Any:
    """The content of a file.

    Raises:
        SourceError: There is none, or it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {path} ({error})") from error


def read_json_if_there(path: Path) -> Any:
    """The same of a file that a folder need not have; None where it has none.

    Raises:
        SourceError: It is no JSON.
    """
    return read_json(path) if path.is_file() else None


def read_object_if_there(path: Path) -> dict[str, Any]:
    """The same of a file that holds an object; an empty one where there is no file.

    Raises:
        SourceError: It is no JSON, or no object.
    """
    content = read_json_if_there(path)
    if not isinstance(content, dict | None):
        raise SourceError(f"{path} is no object", got=type(content).__name__)
    return content or {}
