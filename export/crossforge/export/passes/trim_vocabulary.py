"""Trimming a vocabulary to the tokens that a corpus uses: most of a multilingual model's file is its embedding table.

Requires: a graph that looks ``input_ids`` up in constant tables with one row a token (float32, or the int8 rows and scales
that :mod:`~crossforge.export.passes.int8_dynamic` writes), and the ``tokenizer.json`` that goes with it.
Ensures: same inputs and outputs; the same logits for every text made of the pre-tokens ("words") of the given texts. The
tokens that are left are numbered from 0 in their old order, in the tables, in the tokenizer and its post-processor, and
where the graph compares ids with a constant (RoBERTa finds its padding so). Special and added tokens are never removed.

Why a word of the corpus keeps its tokens, though the tokenizer chooses among fewer:

- **WordLevel**: a word is one token, there or not.
- **WordPiece** takes the longest piece that fits, again and again. The pieces that it took are all left, and no longer one
  can appear. A word that ended as the unknown token must fail again: the pieces that it took before it failed are kept
  too, so it fails at the same place.
- **Unigram** takes the path of best total score. The path of the corpus is left, its rivals only vanish, with one
  exception: a character that was a piece of its own and is gone may now be crossed as unknown. An unknown character costs
  the vocabulary's lowest score less a penalty. The lowest-scored piece is therefore kept, so crossing as unknown stays worse
  than the piece that vanished, which did not win either.
- **BPE** applies the merge of best rank, again and again. With every merge that makes a kept token, and the two halves of
  each kept in turn, all the merges that a word went through are left; at each step the best of all merges is still the best
  of fewer. Bytes are never removed, nor other symbols that no merge makes, unless an unknown token stands in for them.

All this is checked on every text before anything is returned.

What other text becomes depends on the tokenizer: a WordPiece word or a Unigram character with no piece left becomes the
unknown token, and can be counted. It may also be split into smaller pieces that are left, and byte-level BPE, or a
tokenizer with byte fallback, always can: there, text from outside costs tokens and quality and leaves no trace.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from tokenizers import Encoding, Tokenizer

from crossforge.export.passes.result import PassResult
from crossforge.profiles import InputError

_INPUT = "input_ids"
_MOVES = frozenset({"Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Expand", "Gather"})
"""Operators that hand on the values of their first input."""
_SHAPE_ONLY = frozenset({"Shape", "Size"})
_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class TrimResult(PassResult):
    """A model with fewer tokens and the tokenizer that goes with it."""

    tokenizer_json: str
    """The content of the new ``tokenizer.json``."""
    kept: int
    """Rows of the new tables."""
    removed: int
    """Rows that were taken out of the old ones."""
    new_ids: NDArray[np.int64]
    """Each old id's new one, -1 where it is gone: [old rows]."""


def trim_vocabulary(
    model: ModelProto, tokenizer_json: str, texts: Iterable[str], *, keep_ids: Collection[int] = ()
) -> TrimResult:
    """Keep only the tokens that a corpus uses.

    Args:
        model: A reranker, float32 or from :func:`~crossforge.export.passes.int8_dynamic.quantize_int8_dynamic`; not changed.
        tokenizer_json: The content of its ``tokenizer.json``.
        texts: Queries and passages; read once and held in memory.
        keep_ids: Tokens to keep besides, such as the manifest's ``pad_token_id``.

    Returns:
        The new model and tokenizer. A manifest's ``pad_token_id`` and pair template, and ids in any other file, are the
        caller's to rewrite, with ``new_ids``.

    Raises:
        InputError: There is no text; the tokenizer cannot be read, has no unknown token or is random; its ids do not fit
            the model's tables; the graph uses ids in a way that would not survive renumbering; or a text would be
            tokenized differently.
    """
    source = _Source(tokenizer_json)
    lookup = _find_lookup(model)
    corpus = _checked(texts)
    used = _mark_used(source, corpus, lookup, keep_ids)
    new_ids = np.where(used, np.cumsum(used) - 1, -1)
    removed = int((~used).sum())
    if removed:
        tokenizer_json = source.renumbered(new_ids)
        _verify(source, tokenizer_json, new_ids, corpus)
    return TrimResult(
        model=_renumber_graph(model, lookup, used, new_ids),
        changed=removed > 0,
        notes=(f"{removed} of {lookup.rows} tokens removed",) if removed else ("the texts use every token",),
        tokenizer_json=tokenizer_json,
        kept=lookup.rows - removed,
        removed=removed,
        new_ids=new_ids,
    )


# The tokenizer


class _Source:
    """A tokenizer that can be trimmed: the object that encodes, and the document that it is."""

    def __init__(self, text: str) -> None:
        try:
            self.tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"the tokenizer cannot be read ({error})", allowed=f"a tokenizer.json of {_TYPES}") from error
        self.document: dict[str, Any] = json.loads(self.tokenizer.to_str())  # in today's form, however old the file is
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.model: dict[str, Any] = self.document["model"]
        if self.model["type"] not in _COMPANIONS:
            raise InputError("the tokenizer's kind cannot be trimmed", got=self.model["type"], allowed=_TYPES)
        if self.model.get("dropout"):
            raise InputError("the tokenizer drops merges at random", got=f"dropout {self.model['dropout']}", allowed="none")
        pieces = self.model["vocab"]
        listed = isinstance(pieces, list)  # Unigram: a piece's place is its id
        self.vocabulary: dict[str, int] = {piece: i for i, (piece, _) in enumerate(pieces)} if listed else pieces
        self.unknown = self._unknown_id()

    def _unknown_id(self) -> int | None:
        token: str = self.model.get("unk_token") or ""
        unknown: int | None = self.model["unk_id"] if "unk_id" in self.model else self.vocabulary.get(token)
        can_spell = self.model["type"] == "BPE" and not token
        if unknown is None and not can_spell and not self.model.get("byte_fallback"):
            raise InputError("the tokenizer has no unknown token for text from outside", got=token)
        return unknown

    def fixed_ids(self) -> set[int]:
        """Tokens that the tokenizer itself refers to, and bytes that others fall back to."""
        named = {int(holder[key]) for holder, key in _id_slots(self.document)}
        names = (f"<0x{byte:02X}>" for byte in range(256)) if self.model.get("byte_fallback") else ()
        fallback = {self.vocabulary[name] for name in names if name in self.vocabulary}
        unknown = set() if self.unknown is None else {self.unknown}
        return named | fallback | unknown | set(self.tokenizer.get_added_tokens_decoder())

    def renumbered(self, new_ids: NDArray[np.int64]) -> str:
        """The ``tokenizer.json`` of what is left."""
        document = copy.deepcopy(self.document)
        for holder, key in _id_slots(document):
            holder[key] = int(new_ids[holder[key]])
        model = document["model"]
        if isinstance(model["vocab"], list):
            model["vocab"] = [piece for i, piece in enumerate(model["vocab"]) if new_ids[i] >= 0]
            model["unk_id"] = None if self.unknown is None else int(new_ids[self.unknown])
        else:
            model["vocab"] = {token: int(new_ids[i]) for token, i in model["vocab"].items() if new_ids[i] >= 0}
        if "merges" in model:
            left = model["vocab"].keys()
            model["merges"] = [merge for merge in model["merges"] if {*merge, _merged(merge, model)} <= left]
        return json.dumps(document, ensure_ascii=False, indent=2)


def _id_slots(document: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where a document holds ids outside its model, as containers and keys."""
    for token in document["added_tokens"]:
        yield token, "id"
    if document["padding"]:
        yield document["padding"], "pad_id"
    processors = [document["post_processor"] or {}]
    while processors:
        processors.extend((processor := processors.pop()).get("processors", ()))  # Sequence
        for name in {"sep", "cls"} & processor.keys():  # RobertaProcessing, BertProcessing
            yield processor[name], 1
        for token in processor.get("special_tokens", {}).values():  # TemplateProcessing
            for i in range(len(token["ids"])):
                yield token["ids"], i


# What each kind of tokenizer needs besides the tokens that it gave

_Companions = Callable[[_Source, set[int], Sequence[str]], set[int]]
"""From the tokens used and the texts that hold an unknown token, to the further tokens to keep."""


def _of_word_piece(source: _Source, _used: set[int], unknown_texts: Sequence[str]) -> set[int]:
    words = {word for text in unknown_texts for word in _pre_tokens(source.tokenizer, text)}
    return {piece for word in words for piece in _pieces_before_failure(word, source)}


def _pre_tokens(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if tokenizer.pre_tokenizer is None:
        yield normalized
    else:
        yield from (word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))


def _pieces_before_failure(word: str, source: _Source) -> Iterator[int]:
    start = 0
    while start < len(word) <= source.model["max_input_chars_per_word"]:
        prefix = source.model["continuing_subword_prefix"] if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in source.vocabulary)
        end = next(ends, None)
        if end is None:
            return
        yield source.vocabulary[prefix + word[start:end]]
        start = end


def _of_unigram(source: _Source, _used: set[int], _unknown_texts: Sequence[str]) -> set[int]:
    scores = [score for _, score in source.model["vocab"]]
    return {scores.index(min(scores))}


def _of_byte_pairs(source: _Source, used: set[int], _unknown_texts: Sequence[str]) -> set[int]:
    halves: dict[str, list[str]] = {}
    for merge in source.model["merges"]:
        halves.setdefault(_merged(merge, source.model), []).extend(merge)
    waiting = [token for token, id_ in source.vocabulary.items() if id_ in used]
    spells_bytes = '"type": "ByteLevel"' in json.dumps([source.document["normalizer"], source.document["pre_tokenizer"]])
    if source.unknown is None or spells_bytes:
        waiting.extend(token for token in source.vocabulary if token not in halves)
    reached: set[str] = set()
    while waiting:
        token = waiting.pop()
        if token not in reached:
            reached.add(token)
            waiting.extend(halves.get(token, ()))
    return {source.vocabulary[token] for token in reached}


def _merged(merge: Sequence[str], model: dict[str, Any]) -> str:
    return merge[0] + merge[1][len(model["continuing_subword_prefix"] or "") :]


_COMPANIONS: Mapping[str, _Companions] = {
    "BPE": _of_byte_pairs,
    "Unigram": _of_unigram,
    "WordLevel": lambda *_: set(),
    "WordPiece": _of_word_piece,
}
_TYPES = ", ".join(_COMPANIONS)


# The graph


@dataclass(frozen=True, kw_only=True)
class _Lookup:
    """What a graph does with ids."""

    tables: frozenset[str]
    """Initializers with one row a token."""
    rows: int
    comparisons: Mapping[int, tuple[int, NDArray[Any]]]
    """By the index of an ``Equal`` node: the position of its constant, and the constant."""

    def compared_ids(self) -> set[int]:
        """The tokens that ids are compared with; a constant such as -1 or -100 is none."""
        values = {constant.item() for _, constant in self.comparisons.values()}
        return {value for value in values if 0 <= value < self.rows}


def _find_lookup(model: ModelProto) -> _Lookup:
    """Follow ``input_ids`` through the graph."""
    graph = model.graph
    if all(value.name != _INPUT for value in graph.input):
        raise InputError(f"the graph has no input {_INPUT}", got=", ".join(value.name for value in graph.input))
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    scalars = {name: numpy_helper.to_array(tensor) for name, tensor in constants.items() if list(tensor.dims) in ([], [1])}
    carriers = {_INPUT}
    tables: dict[str, int] = {}
    lookups: list[int] = []
    comparisons: dict[int, tuple[int, NDArray[Any]]] = {}
    for index, node in enumerate(graph.node):
        if not carriers & set(_names_read(node)) or node.op_type in _SHAPE_ONLY:
            continue
        places = [place for place, name in enumerate(node.input) if name in carriers]
        if places == [0] and (node.op_type in _MOVES or _casts_to_integer(node)):
            carriers.update(node.output)
        elif _is_lookup(node, places) and node.input[0] in constants:
            tables[node.input[0]] = constants[node.input[0]].dims[0]
            lookups.append(index)
        elif node.op_type == "Equal" and len(places) == 1 and node.input[1 - places[0]] in scalars:
            comparisons[index] = (1 - places[0], scalars[node.input[1 - places[0]]])
        else:
            raise InputError(
                "the graph uses token ids in a way that would not survive renumbering",
                got=f"{node.op_type} {node.name}",
                allowed="lookups in constant tables, and Equal with a constant",
            )
    if len(set(tables.values())) != 1:
        got = ", ".join(f"{name} with {rows} rows" for name, rows in tables.items())
        raise InputError(f"{_INPUT} must be looked up in tables of one length", got=got or "no table")
    others = {name for i, node in enumerate(graph.node) if i not in lookups for name in _names_read(node)}
    if shared := others & tables.keys():
        raise InputError("the embedding table is also used as something else", got=", ".join(sorted(shared)))
    return _Lookup(tables=frozenset(tables), rows=next(iter(tables.values())), comparisons=comparisons)


def _is_lookup(node: NodeProto, places: list[int]) -> bool:
    return node.op_type == "Gather" and places == [1] and all(attribute.i == 0 for attribute in node.attribute)


def _casts_to_integer(node: NodeProto) -> bool:
    return node.op_type == "Cast" and any(
        a.name == "to" and a.i in (TensorProto.INT32, TensorProto.INT64) for a in node.attribute
    )


def _names_read(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those inside the branches of an ``If`` included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _names_read(inner)
        yield from (output.name for output in attribute.g.output)  # a branch may hand on an outer tensor as it is


def _renumber_graph(model: ModelProto, lookup: _Lookup, used: NDArray[np.bool_], new_ids: NDArray[np.int64]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    if used.all():
        return result
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.name in lookup.tables:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[used], tensor.name))
    for index, (place, constant) in lookup.comparisons.items():
        old = constant.item()
        if old in lookup.compared_ids() and new_ids[old] != old:
            # A constant of its own: others may read the old one, RoBERTa's position offset for instance.
            name = f"{graph.node[index].output[0]}_trimmed"
            graph.initializer.append(numpy_helper.from_array(np.full_like(constant, new_ids[old]), name))
            graph.node[index].input[place] = name
    return result


# Deciding and checking


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError("texts must be many strings", got="one string", allowed="a list, or any iterable of strings")
    corpus = list(texts)
    for i, text in enumerate(corpus):
        if not isinstance(text, str):
            raise InputError(f"text {i} is not a string", got=f"{type(text).__name__} {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {i} is not valid Unicode", got=f"a lone surrogate at character {error.start}") from error
    return corpus


def _encode(tokenizer: Tokenizer, corpus: list[str]) -> Iterator[Encoding]:
    for start in range(0, len(corpus), _TEXTS_AT_ONCE):
        yield from tokenizer.encode_batch_fast(corpus[start : start + _TEXTS_AT_ONCE], add_special_tokens=False)


def _mark_used(source: _Source, corpus: list[str], lookup: _Lookup, keep_ids: Collection[int]) -> NDArray[np.bool_]:
    """Which rows stay: bool [rows]."""
    tokens, allowed = source.tokenizer.get_vocab(with_added_tokens=True), f"0 to {lookup.rows - 1}"
    if (largest := max({*tokens.values(), *source.fixed_ids()})) >= lookup.rows:
        raise InputError("the tokenizer has an id with no row in the embedding table", got=largest, allowed=allowed)
    if outside := [id_ for id_ in keep_ids if not 0 <= id_ < lookup.rows]:
        raise InputError("an id to keep is not in the table", got=outside[0], allowed=allowed)
    found: set[int] = set()
    unknown_texts = []
    for text, encoding in zip(corpus, _encode(source.tokenizer, corpus), strict=True):
        found.update(encoding.ids)
        if source.unknown in encoding.ids:
            unknown_texts.append(text)
    if not found:
        raise InputError("there is no text to keep tokens for", got=f"{len(corpus)} texts and not one token")
    found |= source.fixed_ids() | lookup.compared_ids() | set(keep_ids)
    found |= _COMPANIONS[source.model["type"]](source, found, unknown_texts)
    used = np.zeros(lookup.rows, dtype=np.bool_)
    used[list(found)] = True
    return used


def _verify(source: _Source, tokenizer_json: str, new_ids: NDArray[np.int64], corpus: list[str]) -> None:
    trimmed = _Source(tokenizer_json).tokenizer
    tokens = source.tokenizer.get_vocab(with_added_tokens=True)
    expected = {token: int(new_ids[id_]) for token, id_ in tokens.items() if new_ids[id_] >= 0}
    if trimmed.get_vocab(with_added_tokens=True) != expected:
        raise InputError(
            "the tokenizer's ids cannot be numbered anew",
            fix="Its added tokens must come after its other tokens, and no token may be listed twice.",
        )
    for text, before, after in zip(corpus, _encode(source.tokenizer, corpus), _encode(trimmed, corpus), strict=True):
        if before.tokens != after.tokens or new_ids[before.ids].tolist() != after.ids:
            raise InputError(
                "a text would be tokenized differently, so nothing was trimmed",
                got=f"{' '.join(after.tokens):.120} for {text!r:.80}",
                allowed=f"{' '.join(before.tokens):.120}",
            )
