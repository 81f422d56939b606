"""What a pass returns."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """A rewritten model."""

    model: ModelProto
    """A new message; the input is left as it was."""
    changed: bool
    """Whether the pass found anything to do."""
    notes: tuple[str, ...]
    """What was done, or why not, in words."""
