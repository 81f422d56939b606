"""The deployment profile: how a bundle is run on one kind of machine."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from crossforge.profiles.errors import InputError
from crossforge.profiles.precision import Precision
from crossforge.profiles.providers import PREFERENCE, ExecutionProvider


@dataclass(frozen=True, kw_only=True)
class DeploymentProfile:
    """Everything about running a bundle that is not the model. The defaults suit the provider."""

    precision: Precision | None = None
    """None takes the fastest variant that passed its gate and is exact on this processor."""
    providers: tuple[ExecutionProvider, ...] = PREFERENCE
    """Allowed execution providers, best first."""
    budget_tokens: int | None = None
    """Largest ``batch x sequence`` of one batch, padding included; None takes what suits the provider."""
    workers: int | None = None
    """Batches that run at the same time on the CPU, one thread each; None takes one per usable core, and one on a GPU."""

    def __post_init__(self) -> None:
        if not self.providers:
            raise InputError("providers is empty", allowed=", ".join(PREFERENCE))
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise InputError("budget_tokens is too small", got=self.budget_tokens, allowed="1 or more")
        if self.workers is not None and self.workers < 1:
            raise InputError("workers is too small", got=self.workers, allowed="1 or more")

    @classmethod
    def from_toml(cls, path: str | Path) -> DeploymentProfile:
        """Read a profile from a TOML file whose keys are the fields of this class.

        Raises:
            InputError: The file cannot be read, or holds an unknown key or a bad value.
        """
        path = Path(path)
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"cannot read the deployment profile {path} ({error})") from error
        known = {field.name for field in fields(cls)}
        if unknown := sorted(document.keys() - known):
            raise InputError(f"{path}: unknown key {unknown[0]!r}", allowed=", ".join(sorted(known)))
        values: dict[str, Any] = dict(document)
        try:
            if "precision" in values:
                values["precision"] = Precision(values["precision"])
            if "providers" in values:
                values["providers"] = tuple(ExecutionProvider(name) for name in values["providers"])
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {error}") from error
        for name in ("budget_tokens", "workers"):
            if name in values and type(values[name]) is not int:
                raise InputError(f"{path}: {name} must be a whole number", got=repr(values[name]))
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{path}: {error.what}", got=error.got, allowed=error.allowed) from error
