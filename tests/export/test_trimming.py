"""A trimmed bundle: smaller, the same on text that it was trimmed to, honest about the rest, and whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from transformers import AutoConfig, AutoTokenizer
from typer.testing import CliRunner

from crossforge.export import trimming
from crossforge.export.cli import app
from crossforge.export.exporter import export_bundle
from crossforge.export.pairs import digest_pairs, flatten, verification_pairs
from crossforge.export.quantize import quantize_bundle
from crossforge.export.trimming import trim_bundle
from crossforge.profiles import CrossforgeError, GateError, InputError, IntegrityError, Precision, Trimming
from crossforge.runtime import Reranker
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.progress import Silent, Stage
from crossforge.runtime.records import Passage, QueryRecord
from crossforge.runtime.scored import ScoredPairs
from crossforge.runtime.tokenization import load_tokenizer
from crossforge.runtime.verification import verify_bundle
from support.builders import read_manifest, record_again, write_manifest
from support.tiny_models import UNGATED, VOCABULARY, save_tiny_model

PAIRS = (
    ("How long does a blue whale live?", "Whales are mammals that live in the ocean and breathe air."),
    ("What is the boiling point of water?", "Water boils at 100 degrees Celsius."),
    ("Quelle est la hauteur de la tour?", "La tour Eiffel mesure trois cent trente mètres de haut."),
)
TEXTS = [text for pair in PAIRS for text in pair]
REARRANGED = (("Celsius in the ocean?", "La tour Eiffel breathe air at 100 mètres"), ("blue water", ""))
FAMILIES = ("bert", "xlm-roberta")
SENTENCEPIECE = "sentencepiece.bpe.model"

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def untrimmed(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Bundles by family; tests must not change them. The XLM-RoBERTa has all variants and a sentencepiece model."""
    folder = tmp_path_factory.mktemp("untrimmed")
    checkpoint = save_tiny_model(folder / "checkpoint", "xlm-roberta")
    export_bundle(
        str(checkpoint), folder / "bundle", replace(UNGATED, precisions=(Precision.FP32, Precision.FP16, Precision.INT8))
    )
    (folder / "bundle" / SENTENCEPIECE).write_bytes(b"\x0a\x00")
    record_again(folder / "bundle", SENTENCEPIECE)
    return {"bert": tiny_bundle, "xlm-roberta": folder / "bundle"}.__getitem__


@pytest.fixture(scope="module")
def trimmed(untrimmed: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The same bundles, trimmed to ``TEXTS``."""
    folder = tmp_path_factory.mktemp("trimmed")
    for family in FAMILIES:
        trim_bundle(untrimmed(family), folder / family, TEXTS)
    return lambda family: folder / family


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil or replace."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def score(bundle: Path, precision: str, pairs: Any) -> ScoredPairs:
    with Reranker.load(bundle, provider="cpu", precision=precision) as reranker:
        return reranker.score_pairs(pairs)


def logits(bundle: Path, precision: str, pairs: Any) -> NDArray[np.float32]:
    return score(bundle, precision, pairs).logits


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


# Kept text


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_text_scores_the_same_in_every_variant(untrimmed: Make, trimmed: Make, family: str) -> None:
    variants = read_manifest(trimmed(family)).variants
    assert variants.keys() == read_manifest(untrimmed(family)).variants.keys()
    for precision in variants:
        for pairs in (PAIRS, REARRANGED, flatten(verification_pairs())[::17]):
            before, after = (logits(which(family), precision, pairs) for which in (untrimmed, trimmed))
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
            assert np.ptp(before) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trimmed_bundle_verifies(trimmed: Make, family: str) -> None:
    verification = verify_bundle(trimmed(family))
    assert verification.passed, verification


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_is_smaller(untrimmed: Make, trimmed: Make, family: str) -> None:
    before, after = Bundle.open(untrimmed(family)), Bundle.open(trimmed(family))
    assert after.manifest.trimmed is not None
    removed = after.manifest.trimmed.removed_tokens
    assert removed > VOCABULARY // 2
    saved = {precision: before.size_bytes(precision) - after.size_bytes(precision) for precision in after.manifest.variants}
    bytes_a_row = {Precision.FP32: 4 * 32, Precision.INT8_QDQ: 4 * 32, Precision.FP16: 2 * 32, Precision.INT8: 32 + 4}
    for precision, size_bytes in saved.items():
        assert size_bytes == pytest.approx(removed * bytes_a_row[precision], abs=300)


def test_what_is_true_of_the_old_bundle_stays_in_the_manifest(untrimmed: Make, trimmed: Make) -> None:
    before, after = read_manifest(untrimmed("xlm-roberta")), read_manifest(trimmed("xlm-roberta"))
    assert (after.source, after.golden, after.tools) == (before.source, before.golden, before.tools)
    for name in ("reports/parity.json", "reports/parity.md", "special_tokens_map.json"):
        assert after.files[name] == before.files[name]
    for precision, variant in after.variants.items():
        assert replace(variant, files=before.variants[precision].files) == before.variants[precision]
    assert before.trimmed is None
    assert after.trimmed is not None
    assert after.trimmed.kept_tokens + after.trimmed.removed_tokens == VOCABULARY


def test_trimming_again_adds_up(trimmed: Make, tmp_path: Path) -> None:
    before = read_manifest(trimmed("bert")).trimmed
    again = trim_bundle(trimmed("bert"), tmp_path / "again", ["water"]).trimmed
    assert before is not None
    assert again is not None
    assert again.kept_tokens < before.kept_tokens
    assert again.kept_tokens + again.removed_tokens == VOCABULARY


def test_a_bundle_without_fp32_is_trimmed_too(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    write_manifest(bundle, replace(manifest, variants={Precision.INT8: manifest.variants[Precision.INT8]}))
    trim_bundle(bundle, tmp_path / "trimmed", TEXTS)
    np.testing.assert_allclose(logits(tmp_path / "trimmed", "int8", PAIRS), logits(bundle, "int8", PAIRS), rtol=0, atol=1e-6)


# Other text


def test_a_character_without_a_token_is_counted(untrimmed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "builtin_pairs", list)  # they have every character that the tiny tokenizer knows
    trim_bundle(untrimmed("xlm-roberta"), tmp_path / "trimmed", TEXTS)
    before, after = (load_tokenizer(path / TOKENIZER_NAME) for path in (untrimmed("xlm-roberta"), tmp_path / "trimmed"))
    lost = min(
        piece for piece in before.get_vocab() if piece.isalpha() and len(piece) == 1 and after.token_to_id(piece) is None
    )
    pairs = [("water", "water"), ("water", lost * 3), (f"water {lost * 3}", f"{lost * 3} and water")]
    assert score(untrimmed("xlm-roberta"), "fp32", pairs).unknown_tokens.tolist() == [0, 0, 0]
    scored = score(tmp_path / "trimmed", "fp32", pairs)
    assert scored.unknown_tokens.tolist() == [0, 1, 2]  # characters in a row are one unknown token
    assert np.isfinite(scored.logits).all()


def test_a_word_that_can_be_spelled_costs_more_tokens_and_is_not_unknown(untrimmed: Make, trimmed: Make) -> None:
    pairs = [("water", "symphony")]
    before, after = (score(which("bert"), "fp32", pairs) for which in (untrimmed, trimmed))
    assert after.unknown_tokens.tolist() == [0]
    assert after.token_counts[0] > before.token_counts[0]


# The model folder


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_tokenizes_as_the_runtime_does(trimmed: Make, family: str) -> None:
    theirs = AutoTokenizer.from_pretrained(trimmed(family))
    manifest = read_manifest(trimmed(family))
    with Reranker.load(trimmed(family), provider="cpu") as reranker:
        for pair in (*PAIRS, ("symphony W", "ж")):
            encoded = reranker.tokenizer.encode_pairs([pair])
            ours = [*encoded.heads[0], *encoded.passages[0], *manifest.pair_template.suffix.ids]
            assert theirs(*pair)["input_ids"] == ours
    assert theirs.pad_token_id == manifest.pad_token_id
    assert manifest.trimmed is not None
    assert len(theirs) <= manifest.trimmed.kept_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_has_the_new_ids(untrimmed: Make, trimmed: Make, family: str) -> None:
    before, after = (AutoConfig.from_pretrained(which(family)) for which in (untrimmed, trimmed))
    manifest = read_manifest(trimmed(family))
    assert manifest.trimmed is not None
    assert after.vocab_size == manifest.trimmed.kept_tokens
    assert after.pad_token_id == manifest.pad_token_id
    assert after.architectures == before.architectures


def test_sentence_transformers_scores_a_trimmed_bundle_the_same(trimmed: Make) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    options = {"file_name": "onnx/model.onnx", "provider": "CPUExecutionProvider"}
    model = sentence_transformers.CrossEncoder(str(trimmed("xlm-roberta")), backend="onnx", model_kwargs=options)
    with Reranker.load(trimmed("xlm-roberta"), provider="cpu", precision="fp32") as reranker:
        np.testing.assert_allclose(model.predict(list(PAIRS)), reranker.predict(PAIRS), rtol=0, atol=1e-4)


def test_a_file_that_would_be_wrong_is_left_out_and_named(untrimmed: Make, tmp_path: Path) -> None:
    notes: list[str] = []

    class Listener(Silent):
        @contextmanager
        def stage(self, name: str) -> Iterator[Stage]:
            with super().stage(name) as stage:
                yield stage
            notes.append(stage.note)

    trim_bundle(untrimmed("xlm-roberta"), tmp_path / "trimmed", TEXTS, progress=Listener())
    assert (untrimmed("xlm-roberta") / SENTENCEPIECE).exists()
    assert not (tmp_path / "trimmed" / SENTENCEPIECE).exists()
    assert SENTENCEPIECE not in read_manifest(tmp_path / "trimmed").files
    assert any(f"left out, for it may hold the old vocabulary: {SENTENCEPIECE}" in note for note in notes)


# Whole or not there


def test_a_bundle_may_be_trimmed_in_place(bundle: Path, tiny_bundle: Path) -> None:
    trim_bundle(bundle, bundle, TEXTS)
    assert read_manifest(bundle).trimmed is not None
    assert verify_bundle(bundle).passed
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    np.testing.assert_allclose(logits(bundle, "fp32", PAIRS), logits(tiny_bundle, "fp32", PAIRS), rtol=0, atol=1e-6)


def spoil(model: ModelProto) -> ModelProto:
    """Swap two rows of the embedding table."""
    table = max(model.graph.initializer, key=lambda tensor: tensor.dims[0] if tensor.dims else 0)
    table.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(table), 1, axis=0), table.name))
    return model


def test_a_variant_that_answers_differently_is_not_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = trimming.save_onnx
    monkeypatch.setattr(trimming, "save_onnx", lambda model, path: save(spoil(model), path))
    with pytest.raises(GateError, match="trimmed fp32 variant does not answer what the untrimmed one does"):
        trim_bundle(tiny_bundle, tmp_path / "trimmed", TEXTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["compare files", "trim the vocabulary", "verify fp32", "verify int8"])
def test_an_interruption_leaves_what_was_there(bundle: Path, moment: str) -> None:
    class Interrupted(Silent):
        @contextmanager
        def stage(self, name: str) -> Iterator[Stage]:
            with super().stage(name) as stage:
                yield stage
            if name == moment:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trim_bundle(bundle, bundle, TEXTS, progress=Interrupted())
    assert read_manifest(bundle).trimmed is None
    assert verify_bundle(bundle).passed
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def shorten(bundle: Path) -> None:
    model = bundle / "onnx" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])


def verify_on_other_pairs(bundle: Path, sha256: str = "0" * 64) -> None:
    manifest = read_manifest(bundle)
    fp32 = manifest.variants[Precision.FP32]
    other = replace(fp32, parity=replace(fp32.parity, pairs_sha256=sha256))
    write_manifest(bundle, replace(manifest, variants={**manifest.variants, Precision.FP32: other}))


def replace_graph(bundle: Path) -> None:
    path = bundle / "onnx" / "model.onnx"
    model = onnx.load(path)
    model.graph.input[0].name = "tokens"
    onnx.save_model(model, path)
    record_again(bundle, "onnx/model.onnx")


@pytest.mark.parametrize(
    ("fault", "texts", "error", "message"),
    [
        (None, [], InputError, "there is no text to trim to; got none; allowed: --texts FILE"),
        (None, ["", " \n"], InputError, "there is no text to trim to; got 2 texts, all of them blank"),
        (None, "a text", InputError, "texts must be many strings"),
        (shorten, TEXTS, IntegrityError, "model.onnx has"),
        (verify_on_other_pairs, TEXTS, InputError, "was verified on are missing; got none with the sha256 000000000000…"),
        (replace_graph, TEXTS, InputError, "the graph has no input input_ids; got tokens"),
    ],
)
def test_what_cannot_be_trimmed_is_refused(
    bundle: Path,
    tmp_path: Path,
    fault: Callable[[Path], None] | None,
    texts: Any,
    error: type[CrossforgeError],
    message: str,
) -> None:
    if fault is not None:
        fault(bundle)
    with pytest.raises(error, match=message):
        trim_bundle(bundle, tmp_path / "trimmed", texts)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_pairs_that_a_verdict_rests_on_may_be_given(bundle: Path, tmp_path: Path) -> None:
    passages = (Passage(id="a", text="the symphony"), Passage(id="b", text="the dough"))
    run = [QueryRecord(qid="1", query="Who wrote the symphony?", passages=passages)]
    verify_on_other_pairs(bundle, digest_pairs(run))
    trim_bundle(bundle, tmp_path / "trimmed", TEXTS, runs=[run])
    for precision in ("fp32", "int8"):
        before, after = (logits(which, precision, flatten(run)) for which in (bundle, tmp_path / "trimmed"))
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


# What comes after


def test_a_trimmed_bundle_can_be_quantized(trimmed: Make, tmp_path: Path) -> None:
    manifest = quantize_bundle(trimmed("bert"), [Precision.FP16], UNGATED, target=tmp_path / "quantized")
    assert manifest.trimmed == read_manifest(trimmed("bert")).trimmed
    assert verify_bundle(tmp_path / "quantized").passed


# The command


@pytest.fixture
def text_files(tmp_path: Path) -> tuple[Path, Path]:
    """A file of texts, and a run."""
    texts, run = tmp_path / "texts.txt", tmp_path / "run.jsonl"
    texts.write_text("\n".join(TEXTS[:2]) + "\n\n", encoding="utf-8")
    passages = [{"id": "a", "text": TEXTS[3]}]
    run.write_text(json.dumps({"qid": "1", "query": TEXTS[2], "passages": passages}), encoding="utf-8")
    return texts, run


def test_the_command_trims_and_tells(tiny_bundle: Path, text_files: tuple[Path, Path], tmp_path: Path) -> None:
    texts, run = text_files
    arguments = ["trim", tiny_bundle, tmp_path / "trimmed", "--texts", texts, "--run", run]
    result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--json"]])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    manifest = read_manifest(tmp_path / "trimmed")
    assert manifest.trimmed == Trimming(kept_tokens=document["kept_tokens"], removed_tokens=document["removed_tokens"])
    assert document["bundle"] == str(tmp_path / "trimmed")
    assert document["variants"].keys() == {"fp32", "int8"}
    for variant in document["variants"].values():
        assert (tmp_path / "trimmed" / variant["path"]).stat().st_size == variant["size_bytes"]
    assert "those of the texts, of the built-in and golden pairs, and special ones" in result.stderr
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "trimmed")]).stdout
    assert f"{document['kept_tokens']:,} of 1,100 tokens are left" in told
    assert read_json(tmp_path / "trimmed" / TOKENIZER_NAME)["model"]["type"] == "WordPiece"
