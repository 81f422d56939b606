"""A cross-encoder of several languages, from the checkpoint to scores: German, Japanese and English."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from crossforge.export import trimming
from crossforge.export.cli import app
from crossforge.export.exporter import export_bundle
from crossforge.export.trimming import trim_bundle
from crossforge.profiles import Precision
from crossforge.runtime import Chunking, Reranker, ScoredPairs
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.machine import inspect_machine
from support.languages import ODD_TEXTS, TEXTS, save_trilingual_model
from support.tiny_models import MAX_LENGTH, UNGATED

PAIRS = {language: [*product((texts[0], texts[4]), texts[1:])] for language, texts in TEXTS.items()}
ACROSS = [(TEXTS["ja"][0], TEXTS["de"][1]), (TEXTS["de"][4], TEXTS["ja"][3]), (TEXTS["en"][0], TEXTS["ja"][1])]
ALL = [*ACROSS, *(pair for pairs in PAIRS.values() for pair in pairs)]


@dataclass(frozen=True)
class Exported:
    """A checkpoint and its bundle."""

    checkpoint: Path
    bundle: Path

    def ids_of_transformers(self, query: str, passage: str) -> list[int]:
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        return list(tokenizer(query, passage, truncation="only_second", max_length=MAX_LENGTH)["input_ids"])

    def logits_of_transformers(self, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        model = AutoModelForSequenceClassification.from_pretrained(self.checkpoint).eval()
        queries, passages = [query for query, _ in pairs], [passage for _, passage in pairs]
        inputs = tokenizer(
            queries, passages, truncation="only_second", max_length=MAX_LENGTH, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            return np.asarray(model(**inputs).logits, dtype=np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Tests must not change it."""
    folder = tmp_path_factory.mktemp("languages")
    checkpoint = save_trilingual_model(folder / "checkpoint")
    export_bundle(str(checkpoint), folder / "bundle", UNGATED)
    return Exported(checkpoint, folder / "bundle")


@pytest.fixture(scope="module")
def reranker(exported: Exported) -> Any:
    with Reranker.load(exported.bundle, provider="cpu", precision="fp32") as loaded:
        yield loaded


def scored_with(bundle: Path, pairs: list[tuple[str, str]], precision: str = "fp32") -> ScoredPairs:
    with Reranker.load(bundle, provider="cpu", precision=precision) as reranker:
        return reranker.score_pairs(pairs)


def logits(bundle: Path, precision: str, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
    return scored_with(bundle, pairs, precision).logits


# From text to scores


def test_every_language_scores_as_in_transformers(exported: Exported, reranker: Reranker) -> None:
    scored, expected = reranker.score_pairs(ALL), exported.logits_of_transformers(ALL)

    np.testing.assert_allclose(scored.logits, expected, rtol=0, atol=1e-4)
    assert not scored.unknown_tokens.any()
    assert not scored.truncated.any()
    for pairs in PAIRS.values():
        assert np.ptp(exported.logits_of_transformers(pairs)) > 0.1, "the pairs of a language differ"


def test_int8_follows_in_every_language(exported: Exported, reranker: Reranker) -> None:
    needed = Bundle.open(exported.bundle).manifest.variants
    if not set(needed["int8"].instruction_sets) & set(inspect_machine().instruction_sets):  # type: ignore[index]
        pytest.skip("int8 saturates on this processor")
    for pairs in PAIRS.values():
        fp32, int8 = reranker.score_pairs(pairs).logits[:, 0], logits(exported.bundle, "int8", pairs)[:, 0]
        assert np.corrcoef(fp32, int8)[0, 1] > 0.95
        assert (fp32 != int8).any()


@pytest.mark.parametrize("kind", ODD_TEXTS)
def test_odd_text_becomes_the_tokens_and_scores_of_transformers(exported: Exported, reranker: Reranker, kind: str) -> None:
    odd, question = ODD_TEXTS[kind], TEXTS["de"][0]
    pairs = [(question, odd), (odd, question), (odd, odd)]
    for query, passage in pairs:
        encoded = reranker.tokenizer.encode(query, [passage])
        ids = [*encoded.heads[0].tolist(), *encoded.passages[0].tolist(), *reranker.tokenizer.template.suffix.ids]
        assert ids == exported.ids_of_transformers(query, passage)

    np.testing.assert_allclose(reranker.score_pairs(pairs).logits, exported.logits_of_transformers(pairs), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("written", "usual"),
    [
        ("\uff22\uff45\uff52\uff4c\uff49\uff4e", "Berlin"),
        ("\uff8d\uff9e\uff99\uff98\uff9d", "ベルリン"),
        ("Sta\N{COMBINING DIAERESIS}dte", "Städte"),
        ("か\u3099", "が"),
        ("東京\u3000水", "東京 水"),
    ],
)
def test_forms_that_mean_the_same_score_the_same(reranker: Reranker, written: str, usual: str) -> None:
    query = TEXTS["ja"][0]
    assert reranker.score(query, [written]).tolist() == reranker.score(query, [usual]).tolist()


def test_what_has_no_token_is_counted_in_any_script(reranker: Reranker) -> None:
    texts = [ODD_TEXTS["emoji"], ODD_TEXTS["other scripts"], TEXTS["ja"][1]]
    scored = reranker.score_pairs([(TEXTS["en"][0], text) for text in texts])

    assert (scored.unknown_tokens > 0).tolist() == [True, True, False]
    assert scored.mostly_unknown.tolist() == [False, True, False]


def test_a_long_text_without_spaces_is_split_between_its_characters(exported: Exported, reranker: Reranker) -> None:
    filler, answer = "".join(TEXTS["ja"][5:]), TEXTS["ja"][1]
    passage = filler * 3 + answer + filler * 3
    encoded = reranker.tokenizer.encode(TEXTS["ja"][0], [passage], chunk=Chunking(overlap=0.5))
    assert encoded.windows is not None
    assert len(encoded) > 3
    spans = [passage[start:end] for start, end in encoded.windows.spans.tolist()]
    assert any(answer in span for span in spans)
    tokenizer = Tokenizer.from_file(str(exported.bundle / TOKENIZER_NAME))
    for ids, span in zip(encoded.passages, spans, strict=True):
        assert "".join(map(tokenizer.id_to_token, ids.tolist())).lstrip("▁") == span


# The commands


def crossforge(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_command_scores_pairs_of_every_language(exported: Exported, tmp_path: Path) -> None:
    lines = [json.dumps({"query": query, "passage": passage}, ensure_ascii=False) for query, passage in ALL]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = ("--provider", "cpu", "--precision", "fp32", "--json")

    scores = crossforge("score", exported.bundle, "--pairs", tmp_path / "pairs.jsonl", *options)["scores"]
    question, answer = TEXTS["ja"][:2]
    (alone,) = crossforge("score", exported.bundle, "-q", question, "-p", answer, *options)["scores"]

    expected = exported.logits_of_transformers(ALL)[:, 0]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert alone == pytest.approx(scores[ALL.index((question, answer))], abs=1e-4)


# Trimmed to a language


@pytest.fixture(scope="module", params=["de", "ja"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trimmed(exported: Exported, language: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trimmed") / language
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trimming, "builtin_pairs", list)  # they have most of what the tiny tokenizer knows, Japanese too
        trim_bundle(exported.bundle, path, TEXTS[language])
    return path


def test_a_kept_language_scores_the_same(exported: Exported, trimmed: Path, language: str) -> None:
    for precision in ("fp32", "int8"):
        before, after = (logits(bundle, precision, PAIRS[language]) for bundle in (exported.bundle, trimmed))
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
        assert np.ptp(before) > 0.1


def test_what_one_language_needs_is_smaller(exported: Exported, trimmed: Path) -> None:
    before, after = Bundle.open(exported.bundle), Bundle.open(trimmed)
    known, kept = (Tokenizer.from_file(str(path / TOKENIZER_NAME)).get_vocab_size() for path in (before.path, after.path))
    assert kept < known
    for precision in after.manifest.variants:
        bytes_a_row = 32 if precision is Precision.INT8 else 4 * 32
        assert before.size_bytes(precision) - after.size_bytes(precision) > bytes_a_row * (known - kept)


def test_a_script_that_was_not_kept_is_reported_as_unknown(exported: Exported, trimmed: Path, language: str) -> None:
    other = {"de": "ja", "ja": "de"}[language]
    known, scored = (scored_with(bundle, [PAIRS[language][0], *PAIRS[other]]) for bundle in (exported.bundle, trimmed))

    assert not known.unknown_tokens.any()
    assert scored.unknown_tokens[0] == 0
    if language == "de":
        assert scored.mostly_unknown[1:].all()
    else:  # the golden pairs keep Latin letters, which spell German in more tokens, and that is not counted
        assert scored.token_counts[1:].sum() > known.token_counts[1:].sum()
