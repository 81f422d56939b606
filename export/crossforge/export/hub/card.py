"""The model card: what the manifest proves and how to run it, and nothing that is not known."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crossforge.export.hub.programs import Runner, make_programs
from crossforge.profiles import MANIFEST_NAME, Embedding, Manifest, ParityReport, Precision, Source, Variant

CARD_NAME = "README.md"
_MARK = "crossforge push wrote this card; remove this line when you change it. sha256"
_MARKED = re.compile(rf"<!-- {_MARK} ([0-9a-f]{{64}}) -->\n?\Z")
_RAW_LOGITS = "The logits, before any activation. A query that fills the whole pair has to be cut first."
_ONLY_HERE = {Precision.INT8_NATIVE: "crossforge's native engine"}


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
        "pipeline_tag": "text-ranking" if manifest.embedding is None else "sentence-similarity",
        "base_model": base,
        "base_model_relation": None if base is None else "quantized",
        "tags": _tags(manifest),
    }
    return str(ModelCardData(**{name: value for name, value in known.items() if value is not None}).to_yaml())


def _tags(manifest: Manifest) -> list[str]:
    """What it is, what runs it, and its variants."""
    kind = ["cross-encoder", "reranker"] if manifest.embedding is None else ["bi-encoder", "feature-extraction"]
    format_ = ["onnx"] if any(name.endswith(".onnx") for name in manifest.files) else []
    known = ["sentence-transformers"] if Runner.SENTENCE_TRANSFORMERS in make_programs(manifest, "") else []
    return ["crossforge", *kind, *format_, *known, *map(str, manifest.variants)]


def _origin(manifest: Manifest) -> Iterator[str]:
    source, base = manifest.source, base_model(manifest.source)
    at = f" at `{source.revision}`" if source.revision else ""
    what = f"`{source.id}`" if base is None else f"[{base}](https://huggingface.co/{base})"
    kind = "cross-encoder" if manifest.prompt is None else "causal reranker"
    kind = kind if manifest.embedding is None else "bi-encoder"
    yield f"The {kind} {what}{at}, exported to ONNX by crossforge {manifest.tools.get('crossforge', '')}".rstrip() + "."
    yield "Its weights have the sha256 digest (over all tensors by name)\n" + f"`{source.weights_sha256}`.\n"
    yield from _reading(manifest) if manifest.embedding is None else _embedding(manifest, manifest.embedding)
    if manifest.trimmed is not None:
        yield f"- Its vocabulary was trimmed: {manifest.trimmed}. Other words cost more tokens or are unknown."
    golden = "scores" if manifest.embedding is None else "similarities"
    yield f"- `{MANIFEST_NAME}` holds each file's sha256 and {len(manifest.golden)} golden {golden} of the original model."
    yield ""


def _reading(manifest: Manifest) -> Iterator[str]:
    """How a reranker reads a pair, and what its scores mean."""
    scoring, prompt = manifest.scoring, manifest.prompt
    yield f"- A pair in crossforge: {manifest.truncation.describe()}."
    if prompt is not None:
        yield f"- The pair stands within the text that `{MANIFEST_NAME}` holds."
        if prompt.instruction is not None:
            yield f"- Instruction: {_quoted(prompt.instruction)}, or what `Reranker.load(..., instruction=...)` names."
    ranks = "none ranks" if scoring.ranking_label is None else f"`{scoring.labels[scoring.ranking_label]}` ranks"
    labels = ", ".join(f"`{label}`" for label in scoring.labels)
    yield f"- Labels: {labels}; {ranks}. Activation of `predict`: {scoring.activation}."


def _embedding(manifest: Manifest, embedding: Embedding) -> Iterator[str]:
    """How a bi-encoder reads a text, and what its vectors are."""
    yield f"- A text: up to {manifest.truncation.max_length} tokens; it is cut on the {manifest.truncation.side}."
    steps = [f"{' and '.join(embedding.pooling)} pooling", *(f"a dense layer ({layer})" for layer in embedding.dense)]
    steps += ["scaled to length 1"] if embedding.normalize else []
    compared = f"Compared by {embedding.similarity}, outside the graph."
    yield f"- A vector: {embedding.dimension} numbers; {', '.join(steps)}. {compared}"
    prompts = {"a query": embedding.query_prompt, "a passage": embedding.passage_prompt}
    before = [f"{_quoted(prompt)} is put before {what}" for what, prompt in prompts.items() if prompt]
    yield f"- Prompts: {', '.join(before) or 'none'}."


def _quoted(text: str) -> str:
    return f"`{json.dumps(text, ensure_ascii=False)}`"


def _recipe(precision: Precision, variant: Variant) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in variant.quantization.items())
    only = f"; for {_ONLY_HERE[precision]} alone" if precision in _ONLY_HERE else ""
    return (settings or ("the exported graph" if precision is Precision.FP32 else "conversion")).replace("|", "\\|") + only


def _parity(manifest: Manifest) -> Iterator[str]:
    yield "## Does it rank the same?\n"
    number, short = ("logits", "logit diff.") if manifest.embedding is None else ("similarities", "difference")
    yield f"Each variant's {number} and rankings beside its reference's, on the same pairs through the same runtime:\n"
    yield f"| variant | against | queries | pairs | largest {short} | Kendall tau | same first | top-10 overlap | gate |"
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
    raw = "The vectors are those of crossforge; the prompts are in the program." if manifest.embedding else _RAW_LOGITS
    notes = {
        Runner.CROSSFORGE: '`pip install "crossforge[cpu,hub]"`. The fastest variant that is exact on the processor runs; '
        "its files alone are downloaded, and compared with the manifest.",
        Runner.SENTENCE_TRANSFORMERS: '`pip install "sentence-transformers[onnx]"`',
        Runner.ONNX_RUNTIME: f"`pip install onnxruntime tokenizers huggingface_hub`. {raw}",
    }
    for runner, program in make_programs(manifest, repo, revision=revision).items():
        yield f"### {runner}\n"
        yield f"{notes[runner]}\n"
        yield f"```python\n{program}```\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
