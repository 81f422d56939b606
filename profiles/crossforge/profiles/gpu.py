"""How a GPU runs a bundle's batches: switches that stay off until a measurement speaks for them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from crossforge.profiles.errors import InputError
from crossforge.profiles.providers import ExecutionProvider


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """The table ``[gpu]`` of a deployment profile. Each holds for one provider, and means nothing to the others."""

    cuda_graphs: bool = False
    """TensorRT: replay the shapes that come most often as CUDA graphs. Costs memory for each."""
    io_binding: bool = False
    """ONNX Runtime on CUDA: bind inputs to the device before a run, and logits to the array that is returned."""
    memory_limit_mb: int | None = None
    """ONNX Runtime on CUDA: most MiB that its arena takes; None is all. A batch that needs more is halved."""

    def __post_init__(self) -> None:
        for name in ("cuda_graphs", "io_binding"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name} must be true or false", got=repr(getattr(self, name)))
        if self.memory_limit_mb is None:
            return
        if type(self.memory_limit_mb) is not int:
            raise InputError("memory_limit_mb must be a whole number", got=repr(self.memory_limit_mb))
        if self.memory_limit_mb < 1:
            raise InputError("memory_limit_mb is too small", got=self.memory_limit_mb, allowed="1 or more")

    def describe(self, provider: ExecutionProvider) -> str:
        """What is switched on for a provider, in words; blank if nothing is."""
        on: list[str] = []
        if provider is ExecutionProvider.TENSORRT and self.cuda_graphs:
            on.append("CUDA graphs")
        if provider is ExecutionProvider.CUDA and self.io_binding:
            on.append("IO binding")
        if provider is ExecutionProvider.CUDA and self.memory_limit_mb is not None:
            on.append(f"at most {self.memory_limit_mb} MiB")
        return ", ".join(on)

    def to_toml(self) -> str:
        """The table as TOML text; what stands at its default is left out, and so is a table of nothing but defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lines = [f"{name} = {str(value).lower()}" for name, value in values.items() if value != getattr(GpuOptions, name)]
        return "\n".join(["[gpu]", *lines, ""]) if lines else ""

    @classmethod
    def from_table(cls, table: object) -> GpuOptions:
        """Read the table.

        Raises:
            InputError: It is no table, or holds an unknown key or a bad value.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(table, dict):
            raise InputError("gpu is not a table", got=repr(table), allowed=f"[gpu] with {', '.join(names)}")
        if unknown := sorted(table.keys() - set(names)):
            raise InputError(f"unknown key {unknown[0]!r} in [gpu]", allowed=", ".join(names))
        return cls(**table)


EVERYTHING_OFF = GpuOptions()
"""What holds where nothing is said."""
