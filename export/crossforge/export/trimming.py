"""The trimming stage: a bundle in, a bundle out that holds only the tokens that given texts use.

Every other variant is trimmed as it is; none is made again, and those of OpenVINO are left out. So nothing is
calibrated, rounded or repaired anew: on text that is kept each variant answers what it answered before, and its parity
figures stay true. For them to mean what they say, the tokens of the pairs that they rest on and of the golden pairs are kept
besides, and so are those of all built-in pairs, that ``quantize`` may add variants to a trimmed bundle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from crossforge.export.bundle import record_files, refuse_other_content, staged_bundle
from crossforge.export.native import renumber_words
from crossforge.export.onnx import save_onnx
from crossforge.export.pairs import builtin_pairs, digest_pairs, flatten, verification_pairs
from crossforge.export.passes.trim_vocabulary import TrimResult, count_rows, renumber_tokens, trim_vocabulary
from crossforge.export.passes.vocabulary import list_texts
from crossforge.export.tokenizer_files import find_named_ids, write_renumbered_files
from crossforge.profiles import (
    ENGINE_OF,
    MANIFEST_NAME,
    ExecutionProvider,
    GateError,
    InputError,
    Manifest,
    Precision,
    Prompt,
    Trimming,
    Variant,
)
from crossforge.runtime.activation import Floats
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.kinds import load_pair_scorer
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.sessions.native.encoder_file import read_encoder, write_encoder
from crossforge.runtime.templates import derive_template
from crossforge.runtime.tokenization import load_tokenizer

_TOLERANCE = 1e-6
"""Largest difference of a logit between a variant and its trimmed self: the same arithmetic on the same numbers."""


def trim_bundle(
    bundle: str | Path,
    target: str | Path,
    texts: Iterable[str],
    *,
    runs: Iterable[Sequence[QueryRecord]] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Write a bundle whose tokenizer and embedding tables hold only the tokens that texts use.

    Kept besides: special and added tokens, and the tokens of the built-in pairs and of the golden pairs. Every trimmed
    variant is compared with the one that it was made of, on the pairs that verdicts rest on, through the runtime.

    Args:
        bundle: The bundle to trim; only read.
        target: The folder to write. A bundle that is there is replaced when the new one is complete; it may be ``bundle``.
        texts: Queries and passages as they will be scored.
        runs: More of them, as queries with their passages. A bundle that was verified on other pairs than the built-in ones
            needs those pairs here.
        progress: Told of each stage.

    Returns:
        The manifest that was written; ``trimmed`` has the figures.

    Raises:
        InputError: There is no text, ``target`` holds something else, the pairs that the bundle was verified on are missing,
            or its tokenizer or a graph cannot be trimmed.
        BundleError: The bundle is missing or damaged.
        GateError: A trimmed variant answers differently; nothing is written.
    """
    progress = progress or Silent()
    refuse_other_content(Path(target))
    source = Bundle.open_whole(bundle)
    runs = list(runs)
    corpus = [*list_texts(texts), *_texts_of(record for run in runs for record in run)]
    if not any(text.strip() for text in corpus):
        got = f"{len(corpus)} texts, all of them blank" if corpus else "none"
        raise InputError("there is no text to trim to", got=got, allowed="--texts FILE, --run FILE, or both")
    pairs = _find_verdict_pairs(source, runs)
    with progress.stage("compare files") as stage:
        source.check(source.manifest.files)
        stage.note = f"{len(source.manifest.files)} files"
    with staged_bundle(target) as folder:
        with progress.stage("trim the vocabulary") as stage:
            texts = [*corpus, *(text for pair in pairs for text in pair)]
            manifest, left_out = _trim(source, folder, texts)
            stage.note = f"{manifest.trimmed}: those of the texts, of the built-in and golden pairs, and special ones"
            if left_out:
                stage.note += f"; left out, for it may hold the old vocabulary: {', '.join(left_out)}"
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        for precision in manifest.variants:
            with progress.stage(f"verify {precision}") as stage:
                stage.note = _verify(source, Bundle(folder, manifest), precision, pairs)
    return manifest


def _texts_of(records: Iterable[QueryRecord]) -> list[str]:
    return [text for record in records for text in (record.query, *(passage.text for passage in record.passages))]


def _find_verdict_pairs(source: Bundle, runs: Iterable[Sequence[QueryRecord]]) -> list[tuple[str, str]]:
    """The pairs that the bundle's parity figures and golden scores are of: of others they would say nothing once trimmed."""
    manifest = source.manifest
    known = {digest_pairs(records): flatten(records) for records in (verification_pairs(), *runs)}
    needed = dict.fromkeys(variant.parity.pairs_sha256 for variant in manifest.variants.values())
    if missing := [sha256 for sha256 in needed if sha256 not in known]:
        raise InputError(
            f"the pairs that {source.path} was verified on are missing",
            got=f"none with the sha256 {missing[0][:12]}…",
            fix="Name the file that --verification had with --run too, or export the bundle again.",
        )
    golden = [(pair.query, pair.passage) for pair in manifest.golden]
    return list(dict.fromkeys([*(pair for sha256 in needed for pair in known[sha256]), *golden]))


def _trim(source: Bundle, folder: Path, corpus: list[str]) -> tuple[Manifest, list[str]]:
    """Write everything but the manifest.

    Returns:
        The manifest, and the names of the files that were left out.
    """
    manifest = source.manifest
    texts = dict.fromkeys([*corpus, *_texts_of(builtin_pairs())])
    if manifest.prompt is not None:
        texts = dict.fromkeys(_fill_prompt(manifest.prompt, texts))
    if manifest.embedding is not None:  # a prompt may grow together with the text that comes after it
        prompts = [prompt for prompt in manifest.embedding.prompts.values() if prompt]
        texts |= dict.fromkeys(prompt + text for prompt in prompts for text in texts)
    graphs = [precision for precision in manifest.variants if precision not in ENGINE_OF]
    if not graphs:
        raise InputError(
            f"{source.path} has no graph whose vocabulary could be trimmed",
            got=", ".join(manifest.variants),
            fix="Export it again with fp32 or int8 among --precision.",
        )
    first, *others = graphs
    graph = _read_graph(source, first)
    named = {id_ for id_ in find_named_ids(source.path) if 0 <= id_ < count_rows(graph)}
    tokenizer_json = (source.path / TOKENIZER_NAME).read_text(encoding="utf-8")
    result = trim_vocabulary(graph, tokenizer_json, texts, keep_ids={manifest.pad_token_id, *named})
    variants: dict[Precision, Variant] = {first: _write_graph(result.model, folder, manifest.variants[first])}
    for precision in others:
        trimmed = renumber_tokens(_read_graph(source, precision), result.new_ids)
        variants[precision] = _write_graph(trimmed, folder, manifest.variants[precision])
    if native := manifest.variants.get(Precision.INT8_NATIVE):
        write_encoder(renumber_words(read_encoder(source.path / native.path), result.new_ids), folder / native.path)
        variants[Precision.INT8_NATIVE] = native
    of_models = {name for variant in manifest.variants.values() for name in variant.files}
    names = [name for name in manifest.files if name not in of_models]
    left_out = write_renumbered_files(source.path, names, folder, result.tokenizer_json, result.new_ids)
    trimmed_manifest = replace(
        manifest,
        pair_template=derive_template(load_tokenizer(folder / TOKENIZER_NAME), manifest),
        pad_token_id=int(result.new_ids[manifest.pad_token_id]),
        trimmed=_add_up(manifest.trimmed, result),
        variants=variants,
        files=record_files(folder),
    )
    kept = {name for precision in variants for name in manifest.variants[precision].files}
    return trimmed_manifest, [*left_out, *sorted(of_models - kept)]


def _fill_prompt(prompt: Prompt, texts: Iterable[str]) -> list[str]:
    """Texts as the model reads them: tokens that reach over from the prompt into a text are kept too."""
    before, between = prompt.before_query(), prompt.before_passage()
    return [prompt.prefix, prompt.suffix, *(f"{before}{text}{between}{text}" for text in texts)]


def _read_graph(source: Bundle, precision: Precision) -> ModelProto:
    return onnx.load(str(source.path / source.manifest.variants[precision].path))


def _write_graph(graph: ModelProto, folder: Path, variant: Variant) -> Variant:
    files = save_onnx(graph, folder / variant.path)
    return replace(variant, files=tuple(file.relative_to(folder).as_posix() for file in files))


def _add_up(before: Trimming | None, result: TrimResult) -> Trimming:
    earlier = before.removed_tokens if before else 0
    return Trimming(kept_tokens=result.kept, removed_tokens=earlier + result.removed)


def _verify(source: Bundle, trimmed: Bundle, precision: Precision, pairs: list[tuple[str, str]]) -> str:
    """Compare a variant with the one that it was made of.

    Returns:
        The figures in words.

    Raises:
        GateError: They answer differently.
    """
    before, after = (_logits(bundle, precision, pairs) for bundle in (source, trimmed))
    difference = float(np.abs(after - before).max(initial=0.0))
    if not difference <= _TOLERANCE:
        raise GateError(
            f"the trimmed {precision} variant does not answer what the untrimmed one does",
            got=f"a difference of {difference:.2g}",
            allowed=f"up to {_TOLERANCE:g}",
            fix="Nothing was written.",
        )
    sizes = (bundle.size_bytes(precision) / 1e6 for bundle in (source, trimmed))
    return "{:.1f} MB before, {:.1f} MB now; ".format(*sizes) + f"largest logit difference to before {difference:.2g}"


def _logits(bundle: Bundle, precision: Precision, pairs: list[tuple[str, str]]) -> Floats:
    provider = ExecutionProvider.NATIVE if precision is Precision.INT8_NATIVE else ExecutionProvider.CPU
    with load_pair_scorer(bundle, provider=provider, precision=precision, strict=True, check_files=False) as scorer:
        return scorer.score_pairs(pairs).logits
