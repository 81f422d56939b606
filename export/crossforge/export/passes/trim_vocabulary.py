"""Trimming a vocabulary to the tokens that a corpus uses: most of a multilingual model's file is its embedding table.

Requires: a graph that looks ``input_ids`` up in constant tables with one row a token (float32, or the int8 rows and scales
that :mod:`~crossforge.export.passes.int8_dynamic` writes), and the ``tokenizer.json`` that goes with it.
Ensures: same inputs and outputs; the same logits for every text made of the pre-tokens ("words") of the given texts. The
tokens that are left are numbered from 0 in their old order, in the tables, in the tokenizer and its post-processor, and
where the graph compares ids with a constant (RoBERTa finds its padding so). Special and added tokens are never removed.

Which tokens stay, and why kept text is tokenized as before: :mod:`~crossforge.export.passes.vocabulary`. It is checked on
every text before anything is returned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from crossforge.export.passes.result import PassResult
from crossforge.export.passes.vocabulary import TrimmableTokenizer, check_same_tokens, find_used, list_texts
from crossforge.profiles import InputError

_INPUT = "input_ids"
_MOVES = frozenset({"Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Expand", "Gather"})
"""Operators that hand on the values of their first input."""
_SHAPE_ONLY = frozenset({"Shape", "Size"})


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
    source = TrimmableTokenizer(tokenizer_json)
    lookup = _find_lookup(model)
    corpus = list_texts(texts)
    used = _mark_used(source, corpus, lookup, keep_ids)
    new_ids = np.where(used, np.cumsum(used) - 1, -1)
    removed = int((~used).sum())
    if removed:
        tokenizer_json = source.renumbered(new_ids)
        check_same_tokens(source, tokenizer_json, new_ids, corpus)
    return TrimResult(
        model=_renumber(model, lookup, new_ids),
        changed=removed > 0,
        notes=(f"{removed} of {lookup.rows} tokens removed",) if removed else ("the texts use every token",),
        tokenizer_json=tokenizer_json,
        kept=lookup.rows - removed,
        removed=removed,
        new_ids=new_ids,
    )


def renumber_tokens(model: ModelProto, new_ids: NDArray[np.int64]) -> ModelProto:
    """Do to another graph of the same tokenizer what :func:`trim_vocabulary` did to the first.

    Args:
        model: A reranker; not changed.
        new_ids: ``TrimResult.new_ids``.

    Raises:
        InputError: Its tables have another length, or it uses ids in a way that would not survive renumbering.
    """
    lookup = _find_lookup(model)
    if lookup.rows != len(new_ids):
        raise InputError("the graph has another vocabulary", got=f"{lookup.rows} rows", allowed=f"{len(new_ids)}")
    if gone := [id_ for id_ in lookup.compared_ids() if new_ids[id_] < 0]:
        raise InputError("the graph compares ids with a token that is gone", got=gone[0])
    return _renumber(model, lookup, new_ids)


def count_rows(model: ModelProto) -> int:
    """Rows of the tables that a graph looks token ids up in.

    Raises:
        InputError: There is none, or the graph uses ids in a way that would not survive renumbering.
    """
    return _find_lookup(model).rows


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


def _renumber(model: ModelProto, lookup: _Lookup, new_ids: NDArray[np.int64]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    used = new_ids >= 0
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


def _mark_used(
    source: TrimmableTokenizer, corpus: list[str], lookup: _Lookup, keep_ids: Collection[int]
) -> NDArray[np.bool_]:
    """Which rows stay: bool [rows]."""
    tokens, allowed = source.tokenizer.get_vocab(with_added_tokens=True), f"0 to {lookup.rows - 1}"
    if (largest := max({*tokens.values(), *source.fixed_ids()})) >= lookup.rows:
        raise InputError("the tokenizer has an id with no row in the embedding table", got=largest, allowed=allowed)
    if outside := [id_ for id_ in keep_ids if not 0 <= id_ < lookup.rows]:
        raise InputError("an id to keep is not in the table", got=outside[0], allowed=allowed)
    used = np.zeros(lookup.rows, dtype=np.bool_)
    used[list(find_used(source, corpus, lookup.compared_ids() | set(keep_ids)))] = True
    return used
