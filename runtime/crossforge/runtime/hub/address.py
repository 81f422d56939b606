"""How a model on the hub is told from a folder. Pure, but for the look whether a folder is there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from crossforge.profiles import InputError

_NAME = r"[\w][\w.-]*"
_REVISION = r"[\w][\w./-]*"
MAIN = "main"
"""The branch that a name without a revision means."""


def is_hub_id(text: str) -> bool:
    """Whether a text can be the name of a model on the hub: ``name`` or ``owner/name``."""
    return re.fullmatch(rf"{_NAME}(/[\w.-]+)?", text) is not None


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A repository on the hub, and what of its history is wanted."""

    repo: str
    """``owner/name``."""
    revision: str = MAIN
    """A branch, a tag, or the 40 hexadecimal digits of a commit."""

    @classmethod
    def parse(cls, text: str | Path) -> HubAddress | None:
        """Read ``owner/name`` or ``owner/name@revision``.

        Returns:
            None where the text means a folder: it is a ``Path``, or is written as one, or such a path exists. A name without
            an owner means a folder too: a mistyped folder should not be looked for on the hub.
        """
        if isinstance(text, Path):
            return None
        match = re.fullmatch(rf"({_NAME}/[\w.-]+)(?:@({_REVISION}))?", text)
        if match is None or _exists(text):
            return None
        return cls(repo=match[1], revision=match[2] or MAIN)

    def at(self, revision: str | None) -> HubAddress:
        """The same repository at a revision that was named apart.

        Raises:
            InputError: The address names another one already, or it is no revision.
        """
        if revision is None or revision == self.revision:
            return self
        if self.revision != MAIN:
            raise InputError("two revisions are named", got=f"{self.revision} and {revision}", allowed="one of them")
        if not re.fullmatch(_REVISION, revision):
            raise InputError("there is no such revision", got=repr(revision), allowed="a branch, a tag or a commit")
        return replace(self, revision=revision)

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit, which never changes."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def __str__(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # a name that no file system has
        return False
