"""The programs of a model card, which run a bundle from the hub: in crossforge, and in what else can."""

from __future__ import annotations

import json
from enum import StrEnum
from string import Template

from crossforge.profiles import Embedding, Manifest, Precision, Similarity


class Runner(StrEnum):
    """What runs a bundle."""

    CROSSFORGE = "crossforge"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    ONNX_RUNTIME = "ONNX Runtime"


_FASTEST_IN_ONNX_RUNTIME = (Precision.INT8, Precision.FP32, Precision.FP16)
_QUERY = "How many people live in Berlin?"
_PASSAGES = ("Berlin is known for its museums.", "Berlin has about 3.8 million inhabitants.")
_TEXTS = f'query = "{_QUERY}"\npassages = ["{_PASSAGES[0]}", "{_PASSAGES[1]}"]'

_RERANKER = Template("""\
from crossforge.runtime import Reranker

$texts
with Reranker.load("$repo"$revision) as reranker:
    for row in reranker.rank(query, passages):
        print(round(row.score, 2), row.text)
""")
_EMBEDDER = Template("""\
from crossforge.runtime import Embedder

$texts
with Embedder.load("$repo"$revision) as embedder:
    q, p = embedder.encode_queries([query]), embedder.encode_passages(passages)
    print(embedder.similarity(q, p))
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
tokenizer.enable_truncation($max_length, strategy="$strategy", direction="$side")
tokenizer.enable_padding(pad_id=$pad_id)
encodings = tokenizer.encode_batch($batch)
inputs = {
$inputs
}
session = onnxruntime.InferenceSession(paths[1], providers=["CPUExecutionProvider"])
$answer
""")
_ENCODED = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_PAIRS = "[(query, passage) for passage in passages]"
_LOGITS = """\
(logits,) = session.run(["logits"], inputs)
print(logits)"""
_VECTORS = """\
(vectors,) = session.run(None, inputs)
q, p = vectors[:1], vectors[1:]
print({})"""
_SIMILARITIES = {
    Similarity.COSINE: "q @ p.T / np.linalg.norm(q) / np.linalg.norm(p, axis=1)",
    Similarity.DOT: "q @ p.T",
    Similarity.EUCLIDEAN: "-np.linalg.norm(q - p, axis=1)",
    Similarity.MANHATTAN: "-np.abs(q - p).sum(axis=1)",
}


def make_programs(manifest: Manifest, repo: str, *, revision: str | None = None) -> dict[Runner, str]:
    """Programs that run a bundle, by what they run it in; beside ours only where it can be told how.

    sentence-transformers opens cross-encoders alone: it wants a language model in place of a graph that scores, and a bare
    transformer in place of one that embeds. The text around a causal reranker's pair is put there by crossforge alone.

    Args:
        manifest: Of the bundle as it is published.
        repo: Where it is, ``owner/name``.
        revision: The branch that it is on, if that is not the main one.
    """
    embedding = manifest.embedding
    values = {"repo": repo, "texts": _TEXTS, "revision": "" if revision is None else f', revision="{revision}"'}
    ours = _RERANKER if embedding is None else _EMBEDDER
    programs = {Runner.CROSSFORGE: ours.substitute(values)}
    precision = next((p for p in _FASTEST_IN_ONNX_RUNTIME if p in manifest.variants), None)
    if precision is None or manifest.prompt is not None:
        return programs
    variant = manifest.variants[precision]
    names = ("tokenizer.json", variant.path, *(name for name in variant.files if name != variant.path))
    inputs = (
        f'    "{name}": np.array([encoding.{_ENCODED[name]} for encoding in encodings]),' for name in manifest.input_names
    )
    if embedding is None:
        programs[Runner.SENTENCE_TRANSFORMERS] = _SENTENCE_TRANSFORMERS.substitute(values, file=variant.path)
    only_second = embedding is None and not manifest.truncation.is_symmetric
    programs[Runner.ONNX_RUNTIME] = _ONNX_RUNTIME.substitute(
        values,
        names="[" + ", ".join(f'"{name}"' for name in names) + "]",
        max_length=manifest.truncation.max_length,
        strategy="only_second" if only_second else "longest_first",
        side=manifest.truncation.side,
        pad_id=manifest.pad_token_id,
        batch=_PAIRS if embedding is None else _prompted(embedding),
        inputs="\n".join(inputs),
        answer=_LOGITS if embedding is None else _VECTORS.format(_SIMILARITIES[embedding.similarity]),
    )
    return programs


def _prompted(embedding: Embedding) -> str:
    """The query and the passages as one list of texts, their prompts before them."""
    prompts = (embedding.query_prompt, embedding.passage_prompt)
    query, passage = (f"{json.dumps(prompt, ensure_ascii=False)} + " if prompt else "" for prompt in prompts)
    passages = f"*({passage}passage for passage in passages)" if passage else "*passages"
    return f"[{query}query, {passages}]"
