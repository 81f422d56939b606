"""What the int8 recipes have in common, so that repair can leave out layers of any of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from crossforge.export.passes import PassResult

Settings = Mapping[str, str | int | float | bool]
"""What the manifest says of how a variant was made."""


class Recipe(Protocol):
    """A float32 model that is ready to be quantized, wholly or in part."""

    @property
    def settings(self) -> Settings:
        """How it quantizes, for the manifest."""
        ...

    @property
    def products(self) -> tuple[str, ...]:
        """The weights of the layers that can be quantized, in the graph's order."""
        ...

    def apply(self, *, keep_fp32: Collection[str] = (), quantize_embeddings: bool = True) -> PassResult:
        """Quantize all layers but those whose weights are named."""
        ...
