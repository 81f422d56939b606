"""The text around a pair: what a causal reranker, a language model that answers yes or no, was trained to read."""

from __future__ import annotations

from dataclasses import dataclass

_QUERY, _PASSAGE, _INSTRUCTION = "{query}", "{passage}", "{instruction}"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text with places for a query, a passage and, perhaps, an instruction.

    The sequence is the tokens of ``prefix``, of the filled ``body`` and of ``suffix``, each tokenized apart, so that nothing
    in a text changes how the prefix and the suffix are split. Only the body is ever cut.
    """

    prefix: str
    body: str
    """Holds ``{query}`` once, ends with ``{passage}``, and may hold ``{instruction}`` once."""
    suffix: str
    instruction: str | None
    """What is filled in unless whoever loads the bundle says otherwise; None where the body has no place for it."""

    def __post_init__(self) -> None:
        if self.body.count(_QUERY) != 1 or self.body.count(_PASSAGE) != 1 or not self.body.endswith(_PASSAGE):
            raise ValueError(f"a prompt's body holds {_QUERY} once and ends with its only {_PASSAGE}, got {self.body!r}")
        if self.body.count(_INSTRUCTION) > 1:
            raise ValueError(f"a prompt's body holds {_INSTRUCTION} once at most, got {self.body!r}")
        if (self.instruction is not None) != (_INSTRUCTION in self.body):
            raise ValueError(
                f"a prompt has an instruction exactly if its body holds {_INSTRUCTION}, "
                f"got {self.instruction!r} and {self.body!r}"
            )

    def before_query(self, instruction: str | None = None) -> str:
        """The body's text before the query; None takes the prompt's own instruction."""
        return self._fill(self.body.partition(_QUERY)[0], instruction)

    def before_passage(self, instruction: str | None = None) -> str:
        """The body's text between the query and the passage."""
        return self._fill(self.body.partition(_QUERY)[2].removesuffix(_PASSAGE), instruction)

    def _fill(self, text: str, instruction: str | None) -> str:
        return text.replace(_INSTRUCTION, (self.instruction or "") if instruction is None else instruction)
