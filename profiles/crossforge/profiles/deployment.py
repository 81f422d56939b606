"""The deployment profile: how a bundle is run on one kind of machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from crossforge.profiles.cost import CostModel
from crossforge.profiles.errors import InputError
from crossforge.profiles.gpu import EVERYTHING_OFF, GpuOptions
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
    passage_cache_bytes: int = 0
    """Most memory for token ids of passages that were read lately, which are then not tokenized again; 0 keeps none."""
    cost: CostModel | None = None
    """Times of batches of ``precision`` on the first of ``providers``, measured with so many ``workers`` busy."""
    gpu: GpuOptions = EVERYTHING_OFF
    """How batches run where a GPU runs them."""

    def __post_init__(self) -> None:
        if not self.providers:
            raise InputError("providers is empty", allowed=", ".join(PREFERENCE))
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise InputError("budget_tokens is too small", got=self.budget_tokens, allowed="1 or more")
        if self.workers is not None and self.workers < 1:
            raise InputError("workers is too small", got=self.workers, allowed="1 or more")
        if self.passage_cache_bytes < 0:
            raise InputError("passage_cache_bytes is too small", got=self.passage_cache_bytes, allowed="0 or more")
        if self.cost is not None and (self.precision is None or self.workers is None):
            raise InputError(
                "a cost model holds for one variant and one number of workers", allowed="precision and workers set"
            )

    def cost_on(self, provider: ExecutionProvider, precision: Precision) -> CostModel | None:
        """The cost model, where it holds for what really runs."""
        return self.cost if provider is self.providers[0] and precision is self.precision else None

    def to_toml(self) -> str:
        """The profile as TOML text, for :meth:`from_toml`; what is None is left out."""
        lines = [] if self.precision is None else [f'precision = "{self.precision}"']
        quoted = [f'"{name}"' for name in self.providers]
        lines.append(f"providers = [{', '.join(quoted)}]")
        lines += [
            f"{name} = {value}"
            for name, value in (
                ("budget_tokens", self.budget_tokens),
                ("workers", self.workers),
                ("passage_cache_bytes", self.passage_cache_bytes or None),
            )
            if value is not None
        ]
        if self.cost is not None:
            lines += ["", "[cost]", *(f"{field.name} = {getattr(self.cost, field.name)!r}" for field in fields(self.cost))]
        if table := self.gpu.to_toml():
            lines += ["", table.rstrip()]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, path: str | Path) -> DeploymentProfile:
        """Read a profile from a TOML file whose keys are the fields of this class.

        Raises:
            InputError: The file cannot be read, or holds an unknown key or a bad value.
        """
        import tomllib  # some milliseconds, and few processes read one

        path = Path(path)
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"cannot read the deployment profile {path} ({error})") from error
        known = {field.name for field in fields(cls)}
        if unknown := sorted(document.keys() - known):
            raise InputError(f"{path}: unknown key {unknown[0]!r}", allowed=", ".join(sorted(known)))
        values: dict[str, Any] = dict(document)
        if "providers" in values and not isinstance(values["providers"], list):
            raise InputError(f"{path}: providers is no list", got=repr(values["providers"]), allowed='such as ["cpu"]')
        try:
            if "precision" in values:
                values["precision"] = Precision(values["precision"])
            if "providers" in values:
                values["providers"] = tuple(ExecutionProvider(name) for name in values["providers"])
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {error}") from error
        for name in ("budget_tokens", "workers", "passage_cache_bytes"):
            if name in values and type(values[name]) is not int:
                raise InputError(f"{path}: {name} must be a whole number", got=repr(values[name]))
        try:
            if "cost" in values:
                values["cost"] = _read_cost(values["cost"])
            if "gpu" in values:
                values["gpu"] = GpuOptions.from_table(values["gpu"])
            return cls(**values)
        except InputError as error:
            raise InputError(f"{path}: {error.what}", got=error.got, allowed=error.allowed) from error


def _read_cost(table: object) -> CostModel:
    names = {field.name for field in fields(CostModel)}
    if not isinstance(table, dict) or table.keys() != names:
        got = ", ".join(sorted(table)) if isinstance(table, dict) else repr(table)
        raise InputError("[cost] is not a cost model", got=got, allowed=", ".join(sorted(names)))
    return CostModel(**table)
