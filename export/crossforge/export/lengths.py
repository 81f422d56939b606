"""How many tokens a source reads, and what gives way: of a pair, of one text, of a pair within a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossforge.export.bi_encoder import BiEncoder
from crossforge.export.options import SourceOptions
from crossforge.profiles import Prompt, SourceError, Truncation, TruncationSide

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

DEFAULT_QUERY_MAX_LENGTH = 64
"""monoBERT's contract (Nogueira and Cho, 2019); used where the source says nothing."""
DEFAULT_PROMPT_LENGTH = 8192
"""Tokens of a pair within a prompt where nothing else is said, as on Qwen3-Reranker's card. Its positions reach further,
memory does not."""
DEFAULT_PROMPT_QUERY_LENGTH = 512
_LARGEST_PLAUSIBLE_LENGTH = 1_000_000
"""Above this a tokenizer's model_max_length is a placeholder for "unknown"."""
_COUNTS_POSITIONS_FROM_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Families whose first token sits at position ``pad_token_id + 1``, so that 514 positions hold 512 tokens."""


def read_pair_truncation(
    source: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, options: SourceOptions
) -> Truncation:
    """The contract of a cross-encoder's pairs.

    Raises:
        SourceError: The model does not say how long a pair may be, or it may not be as long as was said.
    """
    limits = _limits(config, tokenizer)
    if options.max_length is not None:
        limits = limits or [options.max_length]
    if not limits:
        raise SourceError(f"{source} does not say how long a pair may be", fix="Say it with --max-length.")
    longest = min(limits)
    max_length = longest if options.max_length is None else options.max_length
    special = tokenizer.num_special_tokens_to_add(pair=True)
    _check_length(source, max_length, special, longest)
    query_max_length = _query_length(options, max_length - special - 1, DEFAULT_QUERY_MAX_LENGTH)
    side = TruncationSide(str(getattr(tokenizer, "truncation_side", "right")))
    return Truncation(max_length=max_length, query_max_length=None if options.symmetric else query_max_length, side=side)


def read_text_truncation(
    source: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    options: SourceOptions,
    bi_encoder: BiEncoder,
) -> Truncation:
    """What one text of a bi-encoder may have. There is no query, so ``query_max_length`` is the most that one text can have.

    Raises:
        SourceError: The model does not say how long a text may be, or it may not be as long as was said.
    """
    positions = _usable_positions(config)
    said = bi_encoder.max_length or _length_of(tokenizer) or positions
    wanted = options.max_length or said
    if wanted is None:
        raise SourceError(f"{source} does not say how long a text may be", fix="Say it with --max-length.")
    longest = positions or wanted
    max_length = min(wanted, longest) if options.max_length is None else wanted
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if not special + 2 <= max_length <= longest:
        raise SourceError(f"max_length does not suit {source}", got=max_length, allowed=f"{special + 2} to {longest}")
    side = TruncationSide(str(getattr(tokenizer, "truncation_side", "right")))
    return Truncation(max_length=max_length, query_max_length=max_length - special - 1, side=side)


def read_prompt_truncation(
    source: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, options: SourceOptions, prompt: Prompt
) -> Truncation:
    """The contract of a causal reranker's pairs: the tokens of the prompt around a pair count too.

    Raises:
        SourceError: They leave no room for a passage, or the tokenizer cuts on the left.
    """
    if str(getattr(tokenizer, "truncation_side", "right")) != TruncationSide.RIGHT:
        raise SourceError(f"{source} cuts texts on the left", allowed="a tokenizer that cuts on the right")
    backend = tokenizer.backend_tokenizer
    texts = (prompt.prefix, prompt.before_query(), prompt.before_passage(), prompt.suffix)
    taken = sum(len(backend.encode(text, add_special_tokens=False).ids) for text in texts)
    longest = min(_limits(config, tokenizer), default=None) or options.max_length or DEFAULT_PROMPT_LENGTH
    length = min(longest, DEFAULT_PROMPT_LENGTH) if options.max_length is None else options.max_length
    _check_length(source, length, taken, longest)
    query = _query_length(options, length - taken - 1, DEFAULT_PROMPT_QUERY_LENGTH)
    return Truncation(max_length=length, query_max_length=query, side=TruncationSide.RIGHT)


def _check_length(source: str, length: int, taken: int, longest: int) -> None:
    """Both texts need a token beside the ``taken`` ones, and the model holds ``longest``."""
    if not taken + 2 <= length <= longest:
        raise SourceError(f"max_length does not suit {source}", got=length, allowed=f"{taken + 2} to {longest}")


def _query_length(options: SourceOptions, room: int, default: int) -> int:
    """Tokens that a query keeps of ``room``, which is what both texts share less one for the passage."""
    length = options.query_max_length
    if length is None:
        length = min(default, max(1, room // 2))
    if not 0 < length <= room:
        raise SourceError("query_max_length leaves no room for a passage", got=length, allowed=f"1 to {room}")
    return length


def _limits(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [limit for limit in (_length_of(tokenizer), _usable_positions(config)) if limit is not None]


def _length_of(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """What a tokenizer says; None where that is a placeholder."""
    return int(tokenizer.model_max_length) if tokenizer.model_max_length < _LARGEST_PLAUSIBLE_LENGTH else None


def _usable_positions(config: PretrainedConfig) -> int | None:
    """Tokens that the position embeddings reach; None where positions are relative and without a table."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    if getattr(config, "model_type", "") in _COUNTS_POSITIONS_FROM_PADDING:
        return positions - int(config.pad_token_id or 0) - 1
    return positions
