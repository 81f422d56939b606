"""The model card: what the manifest proves and how to run it, and nothing that is not known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import Template
from typing import Any

from crossforge.profiles import MANIFEST_NAME, Manifest, ParityReport, Precision, Source, Variant

CARD_NAME = "README.md"
_MARK = "crossforge push wrote this card; remove this line when you change it. sha256"
_MARKED = re.compile(rf"<!-- {_MARK} ([0-9a-f]{{64}}) -->\n?\Z")
_FASTEST_IN_ONNX_RUNTIME = (Precision.INT8, Precision.FP32, Precision.FP16)
_ONLY_HERE = {Precision.INT8_NATIVE: "crossforge's native engine"}
_QUERY = "How many people live in Berlin?"
_PASSAGES = ("Berlin is known for its museums.", "Berlin has about 3.8 million inhabitants.")
_TEXTS = f'query = "{_QUERY}"\npassages = ["{_PASSAGES[0]}", "{_PASSAGES[1]}"]'

_CROSSFORGE = Template("""\
from crossforge.runtime import Reranker

$texts
with Reranker.load("$repo"$revision) as reranker:
    for row in reranker.rank(query, passages):
        print(round(row.score, 2), row.text)
""")
_SENTENCE_TRANSFORMERS = Template("""\
from sentence_transformers import CrossEncoder

$texts
model = CrossEncoder("$repo", backend="onnx", model_kwargs={"file_name": "$file"}$revision)
print(model.predict([(query, passage) for passage in passages]))
""")
_ONNX_RUNTIME = Template("""\
import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer

$texts
names = $names
paths = [hf_hub_download("$repo", name$revision) for name in names]
tokenizer = Tokenizer.from_file(paths[0])
tokenizer.enable_truncation($max_length, strategy="only_second", direction="$side")
tokenizer.enable_padding(pad_id=$pad_id)
encodings = tokenizer.encode_batch([(query, passage) for passage in passages])
inputs = {
$inputs
}
session = onnxruntime.InferenceSession(paths[1], providers=["CPUExecutionProvider"])
(logits,) = session.run(["logits"], inputs)
print(logits)
""")
_ENCODED = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What the hub says of the model that a bundle was made of."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()


def base_model(source: Source) -> str | None:
    """The hub's name of the model that a bundle was made of; None where it came from a folder."""
    return source.id if "/" in source.id or source.revision is not None else None


def make_card(manifest: Manifest, repo: str, facts: SourceFacts, *, revision: str | None = None) -> str:
    """The text of ``README.md``.

    Args:
        manifest: Of the bundle as it is published.
        repo: ``owner/name``, where it goes.
        facts: Licence and language, where they are known.
        revision: The branch that it goes to, if that is not the main one.
    """
    text = "\n".join(_page(manifest, repo, facts, revision)).rstrip() + "\n\n"
    return f"{text}<!-- {_MARK} {_digest(text)} -->\n"


def is_generated(card: str) -> bool:
    """Whether a card is one of :func:`make_card`'s, to the letter."""
    card = card.replace("\r\n", "\n")
    mark = _MARKED.search(card)
    return mark is not None and _digest(card[: mark.start()]) == mark[1]


def snippets(manifest: Manifest, repo: str, *, revision: str | None = None) -> dict[str, str]:
    """Programs that run the bundle, by what they run it in; the last two only where a variant suits ONNX Runtime."""
    values = {"repo": repo, "texts": _TEXTS, "revision": "" if revision is None else f', revision="{revision}"'}
    programs = {"crossforge": _CROSSFORGE.substitute(values)}
    precision = next((p for p in _FASTEST_IN_ONNX_RUNTIME if p in manifest.variants), None)
    if precision is None:
        return programs
    variant = manifest.variants[precision]
    names = ("tokenizer.json", variant.path, *(name for name in variant.files if name != variant.path))
    inputs = (
        f'    "{name}": np.array([encoding.{_ENCODED[name]} for encoding in encodings]),' for name in manifest.input_names
    )
    programs["sentence-transformers"] = _SENTENCE_TRANSFORMERS.substitute(values, file=variant.path)
    programs["ONNX Runtime"] = _ONNX_RUNTIME.substitute(
        values,
        names="[" + ", ".join(f'"{name}"' for name in names) + "]",
        max_length=manifest.truncation.max_length,
        side=manifest.truncation.side,
        pad_id=manifest.pad_token_id,
        inputs="\n".join(inputs),
    )
    return programs


def _page(manifest: Manifest, repo: str, facts: SourceFacts, revision: str | None) -> Iterator[str]:
    yield f"---\n{_front_matter(manifest, facts)}\n---\n"
    yield f"# {repo.partition('/')[2]}\n"
    yield from _origin(manifest)
    yield "## Variants\n"
    yield "| variant | file | MB | made by |"
    yield "|---|---|---|---|"
    for precision, variant in manifest.variants.items():
        size = sum(manifest.files[name].size_bytes for name in variant.files) / 1e6
        yield f"| {precision} | `{variant.path}` | {size:.1f} | {_recipe(precision, variant)} |"
    yield ""
    yield from _parity(manifest)
    yield from _usage(manifest, repo, revision)


def _front_matter(manifest: Manifest, facts: SourceFacts) -> str:
    from huggingface_hub import ModelCardData

    base = base_model(manifest.source)
    known: dict[str, Any] = {
        "language": list(facts.language) or None,
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "library_name": "crossforge",
        "pipeline_tag": "text-ranking",
        "base_model": base,
        "base_model_relation": None if base is None else "quantized",
        "tags": ["crossforge", "cross-encoder", "reranker", "onnx", "sentence-transformers", *map(str, manifest.variants)],
    }
    return str(ModelCardData(**{name: value for name, value in known.items() if value is not None}).to_yaml())


def _origin(manifest: Manifest) -> Iterator[str]:
    source, base = manifest.source, base_model(manifest.source)
    at = f" at `{source.revision}`" if source.revision else ""
    what = f"`{source.id}`" if base is None else f"[{base}](https://huggingface.co/{base})"
    yield (
        f"The cross-encoder {what}{at}, exported to ONNX by crossforge {manifest.tools.get('crossforge', '')}".rstrip() + "."
    )
    yield "Its weights have the sha256 digest (over all tensors by name)\n" + f"`{source.weights_sha256}`.\n"
    truncation, scoring = manifest.truncation, manifest.scoring
    yield (
        f"- A pair has up to {truncation.max_length} tokens. crossforge leaves the query {truncation.query_max_length} of "
        f"them and cuts the passage on the {truncation.side}."
    )
    ranks = "none ranks" if scoring.ranking_label is None else f"`{scoring.labels[scoring.ranking_label]}` ranks"
    labels = ", ".join(f"`{label}`" for label in scoring.labels)
    yield f"- Labels: {labels}; {ranks}. Activation of `predict`: {scoring.activation}."
    if manifest.trimmed is not None:
        yield f"- Its vocabulary was trimmed: {manifest.trimmed}. Other words cost more tokens or are unknown."
    yield f"- `{MANIFEST_NAME}` holds each file's sha256 and {len(manifest.golden)} golden scores of the original model."
    yield ""


def _recipe(precision: Precision, variant: Variant) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in variant.quantization.items())
    only = f"; for {_ONLY_HERE[precision]} alone" if precision in _ONLY_HERE else ""
    return (settings or ("the exported graph" if precision is Precision.FP32 else "conversion")).replace("|", "\\|") + only


def _parity(manifest: Manifest) -> Iterator[str]:
    yield "## Does it rank the same?\n"
    yield "Each variant's logits and rankings beside its reference's, on the same pairs through the same runtime:\n"
    yield "| variant | against | queries | pairs | largest logit diff. | Kendall tau | same first | top-10 overlap | gate |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for precision, variant in manifest.variants.items():
        parity = variant.parity
        yield (
            f"| {precision} | {parity.reference} | {parity.queries} | {parity.pairs} | {parity.max_abs_diff:.2g} "
            f"| {_figure(parity.kendall_tau)} | {_figure(parity.top1_agreement)} | {_figure(parity.top10_overlap)} "
            f"| {'passed' if parity.passed else '**FAILED**'} |"
        )
    yield ""
    judged = {p: v.parity for p, v in manifest.variants.items() if v.parity.quality is not None}
    if judged:
        yield from _quality(judged)


def _quality(judged: dict[Precision, ParityReport]) -> Iterator[str]:
    yield "| variant | nDCG@10 | reference | MRR@10 | reference |"
    yield "|---|---|---|---|---|"
    for precision, parity in judged.items():
        if (quality := parity.quality) is not None:
            yield (
                f"| {precision} | {quality.ndcg_at_10:.4f} | {quality.reference_ndcg_at_10:.4f} "
                f"| {quality.mrr_at_10:.4f} | {quality.reference_mrr_at_10:.4f} |"
            )
    yield ""


def _usage(manifest: Manifest, repo: str, revision: str | None) -> Iterator[str]:
    yield "## How to run it\n"
    notes = {
        "crossforge": '`pip install "crossforge[cpu,hub]"`. The fastest variant that is exact on the processor runs; '
        "its files alone are downloaded, and compared with the manifest.",
        "sentence-transformers": '`pip install "sentence-transformers[onnx]"`',
        "ONNX Runtime": "`pip install onnxruntime tokenizers huggingface_hub`. The logits, before any activation. "
        "A query that fills the whole pair has to be cut first.",
    }
    for name, program in snippets(manifest, repo, revision=revision).items():
        yield f"### {name}\n"
        yield f"{notes[name]}\n"
        yield f"```python\n{program}```\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
