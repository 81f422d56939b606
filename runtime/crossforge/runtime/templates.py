"""How texts become one sequence: found out by watching a tokenizer join some."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from crossforge.profiles import Manifest, ManifestError, PairTemplate, Prompt, SpecialTokens

_NOTHING = SpecialTokens(ids=(), type_ids=())


def derive_template(tokenizer: Tokenizer, manifest: Manifest) -> PairTemplate:
    """What a bundle's template has to be with a tokenizer.

    Raises:
        ManifestError: The tokenizer joins texts in a way that crossforge does not know.
    """
    if manifest.prompt is not None:
        return derive_prompt_template(tokenizer, manifest.prompt)
    return (derive_pair_template if manifest.embedding is None else derive_text_template)(tokenizer)


def derive_pair_template(tokenizer: Tokenizer) -> PairTemplate:
    """Find out how a tokenizer's post-processor joins a pair.

    Raises:
        ManifestError: The result is not ``prefix query separator passage suffix`` with one segment id a text.
    """
    probe = tokenizer.encode("a", "b")
    query, passage = _positions(probe, 0), _positions(probe, 1)
    query_types, passage_types = ({probe.type_ids[i] for i in text} for text in (query, passage))
    # A template that repeats a text leaves the copy without a sequence id, but does not call it special.
    if len(query_types) != 1 or len(passage_types) != 1 or query[-1] >= passage[0] or not _others_are_special(probe):
        raise ManifestError(
            "the tokenizer joins a pair in a way that crossforge does not know",
            got=" ".join(probe.tokens),
            allowed="special tokens, query, special tokens, passage, special tokens",
        )
    return PairTemplate(
        prefix=_special(probe, range(query[0])),
        separator=_special(probe, range(query[-1] + 1, passage[0])),
        suffix=_special(probe, range(passage[-1] + 1, len(probe.ids))),
        query_type_id=query_types.pop(),
        passage_type_id=passage_types.pop(),
    )


def derive_text_template(tokenizer: Tokenizer) -> PairTemplate:
    """Find out what a tokenizer's post-processor puts around a single text: the template of a pair without a query.

    Raises:
        ManifestError: The result is not ``prefix text suffix`` with one segment id.
    """
    probe = tokenizer.encode("a")
    text = _positions(probe, 0)
    types = {probe.type_ids[i] for i in text}
    if len(types) != 1 or not _others_are_special(probe):
        raise ManifestError(
            "the tokenizer wraps a text in a way that crossforge does not know",
            got=" ".join(probe.tokens),
            allowed="special tokens, text, special tokens",
        )
    type_id = types.pop()
    return PairTemplate(
        prefix=_special(probe, range(text[0])),
        separator=_NOTHING,
        suffix=_special(probe, range(text[-1] + 1, len(probe.ids))),
        query_type_id=type_id,
        passage_type_id=type_id,
    )


def derive_prompt_template(tokenizer: Tokenizer, prompt: Prompt) -> PairTemplate:
    """The tokens of a prompt's prefix and suffix; nothing stands between the texts of its body but text."""
    prefix, suffix = (encode_special(tokenizer, text) for text in (prompt.prefix, prompt.suffix))
    return PairTemplate(prefix=prefix, separator=_NOTHING, suffix=suffix, query_type_id=0, passage_type_id=0)


def encode_special(tokenizer: Tokenizer, *texts: str) -> SpecialTokens:
    """The tokens of texts, each by itself, as tokens of a template that belong to neither text of a pair."""
    ids = tuple(id_ for text in texts for id_ in tokenizer.encode(text, add_special_tokens=False).ids)
    return SpecialTokens(ids=ids, type_ids=(0,) * len(ids))


def _positions(probe: Encoding, sequence: int) -> list[int]:
    return [i for i, owner in enumerate(probe.sequence_ids) if owner == sequence]


def _others_are_special(probe: Encoding) -> bool:
    """Whether all that belongs to no text is called special."""
    return all(
        special for owner, special in zip(probe.sequence_ids, probe.special_tokens_mask, strict=True) if owner is None
    )


def _special(probe: Encoding, positions: Sequence[int]) -> SpecialTokens:
    return SpecialTokens(ids=tuple(probe.ids[i] for i in positions), type_ids=tuple(probe.type_ids[i] for i in positions))
