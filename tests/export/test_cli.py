from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from crossforge.export.cli import app
from crossforge.export.pairs import berlin
from crossforge.profiles import Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.sessions.native.library import NATIVE_INSTRUCTION_SETS
from support.demo import BUNDLE, PRINTED

QUERY = "How many people live in Berlin?"


def crossforge(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def passages_file(tmp_path: Path) -> Path:
    path = tmp_path / "passages.jsonl"
    lines = [json.dumps({"id": passage.id, "text": passage.text}) for passage in berlin().passages]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def run_and_qrels(tmp_path: Path) -> tuple[Path, Path]:
    record = berlin()
    run = tmp_path / "run.jsonl"
    passages = [{"id": passage.id, "text": passage.text} for passage in record.passages]
    run.write_text(json.dumps({"qid": record.qid, "query": record.query, "passages": passages}), encoding="utf-8")
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("demo 0 demo-02 3\ndemo 0 demo-05 2\ndemo 0 demo-01 0\n", encoding="utf-8")
    return run, qrels


def test_score_prints_one_json_document(demo_bundle: Path) -> None:
    result = crossforge(
        "score", demo_bundle, "-q", QUERY, "-p", "Berlin has 3.8 million inhabitants.", "-p", "x " * 900, "--json"
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["scores"][0] > document["scores"][1]
    assert document["truncated"] == [False, True]
    assert document["provider"] == "cpu"
    assert document["precision"] in ("fp32", "int8")


def test_score_counts_unknown_tokens(demo_bundle: Path) -> None:
    arguments = ("score", demo_bundle, "-q", QUERY, "-p", "Berlin", "-p", "Berlin \N{CITYSCAPE} \N{CITYSCAPE}")
    assert json.loads(crossforge(*arguments, "--json").stdout)["unknown_tokens"] == [0, 2]
    assert "Warning: 1 of 2 pairs hold text that the model has no token for" in crossforge(*arguments).stderr


def test_score_reads_pairs_in_bulk(demo_bundle: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "a", "passage": "b"}\n{"query": "c", "text": "d"}\n', encoding="utf-8")
    result = crossforge("score", demo_bundle, "--pairs", pairs, "--precision", "fp32", "--json")
    document = json.loads(result.stdout)
    alone = crossforge("score", demo_bundle, "-q", "c", "-p", "d", "--precision", "fp32", "--json")
    assert document["scores"][1] == pytest.approx(json.loads(alone.stdout)["scores"][0], abs=1e-4)


def test_score_of_no_passages_is_empty(demo_bundle: Path) -> None:
    result = crossforge("score", demo_bundle, "-q", QUERY, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["scores"] == []


def test_rank_puts_the_population_first(demo_bundle: Path, passages_file: Path) -> None:
    result = crossforge("rank", demo_bundle, "-q", QUERY, "--passages", passages_file, "--json")
    document = json.loads(result.stdout)
    assert document["query"] == QUERY
    assert document["results"][0]["id"] == "demo-02"
    scores = [row["score"] for row in document["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(row["corpus_id"] for row in document["results"]) == list(range(14))


def test_long_passages_are_read_in_windows(demo_bundle: Path, tmp_path: Path) -> None:
    filler = "The kettle boils water in less than three minutes, and oranges are rich in vitamin C. " * 30
    answer = "Berlin has about 3.8 million inhabitants."
    path = tmp_path / "articles.txt"
    path.write_text(f"A violin has four strings.\n{filler}{answer} {filler}", encoding="utf-8")
    arguments = ("rank", demo_bundle, "-q", QUERY, "--passages", path, "--chunk", "max", "--window", 128)

    first, second = json.loads(crossforge(*arguments, "--json").stdout)["results"]
    assert (first["id"], first["truncated"], second["window"]) == ("1", False, None)
    window = first["window"]
    assert answer in first["text"][window["start"] : window["end"]]
    assert 0 < window["index"] < window["count"] - 1

    table = crossforge(*arguments)
    assert f"[{window['index'] + 1} of {window['count']}]" in table.stdout
    assert "were cut" not in table.stderr

    pair = ("score", demo_bundle, "-q", QUERY, "-p", first["text"], "-p", "A violin has four strings.")
    scored = json.loads(crossforge(*pair, "--chunk", "max", "--window", 128, "--json").stdout)
    assert scored["windows"] == [window, None]
    assert scored["scores"][0] == pytest.approx(first["score"], abs=1e-4)
    assert scored["truncated"] == [False, False]
    assert "windows" not in json.loads(crossforge(*pair, "--json").stdout)


def test_rank_formats_agree(demo_bundle: Path, passages_file: Path) -> None:
    arguments = ("rank", demo_bundle, "-q", QUERY, "--passages", passages_file, "--top-k", 3)
    jsonl = [json.loads(line)["id"] for line in crossforge(*arguments, "--format", "jsonl").stdout.splitlines()]
    trec = [line.split() for line in crossforge(*arguments, "--format", "trec", "--qid", "7").stdout.splitlines()]
    table = crossforge(*arguments).stdout.splitlines()
    assert [row[2] for row in trec] == jsonl
    assert [row[0] for row in trec] == ["7"] * 3
    assert [row[3] for row in trec] == ["1", "2", "3"]
    assert [line.split()[2] for line in table[1:]] == jsonl


def test_rank_reads_standard_input(demo_bundle: Path) -> None:
    result = crossforge(
        "rank", demo_bundle, "-q", "Berlin", "--passages", "-", "--json", stdin="Violins have strings.\nBerlin!\n"
    )
    assert json.loads(result.stdout)["results"][0]["text"] == "Berlin!"


def test_evaluate_compares_variants(demo_bundle: Path, demo_embedder_bundle: Path, run_and_qrels: tuple[Path, Path]) -> None:
    run, qrels = run_and_qrels
    arguments = ("--run", run, "--qrels", qrels, "--embedder", demo_embedder_bundle, "--json")
    result = crossforge("evaluate", demo_bundle, *arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["queries"] == 1
    assert set(document["variants"]) == {"fp32", "int8"}
    assert document["variants"]["fp32"]["kendall_tau"] == pytest.approx(1.0)
    assert document["variants"]["fp32"]["ndcg@10"] > document["first_stage"]["ndcg@10"]
    embedder = document["embedders"][str(demo_embedder_bundle)]
    assert embedder["precision"] == "fp32"
    for ranking in (document["first_stage"], embedder, document["variants"]["int8"]):
        assert {"ndcg@10", "mrr@10", "recall@100", "ndcg@10_difference", "kendall_tau"} <= set(ranking)


def test_inspect_shows_the_manifest(demo_bundle: Path) -> None:
    document = json.loads(crossforge("inspect", demo_bundle, "--json").stdout)
    assert document["architecture"] == "BertForSequenceClassification"
    text = crossforge("inspect", demo_bundle).stdout
    assert "token_type_ids" in text
    assert "int8" in text


def test_verify_passes_on_a_fresh_bundle(demo_bundle: Path) -> None:
    result = crossforge("verify", demo_bundle, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["passed"] is True


def test_verify_answers_no_for_an_altered_bundle(demo_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_bundle, copy)
    with (copy / "onnx" / "model_int8.onnx").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"\xff" * 10)
    result = crossforge("verify", copy, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert any("model_int8.onnx was altered" in damage for damage in document["damaged_files"])
    assert document["variants"]["int8"]["problem"]
    assert document["variants"]["fp32"]["problem"] is None


def test_doctor_says_what_runs_here() -> None:
    result = crossforge("doctor", "--json")
    document = json.loads(result.stdout)
    states = {state["name"]: state for state in document["providers"]}
    assert result.exit_code == 0
    assert states["cpu"]["available"] is True
    assert states["tensorrt"]["available"] is False
    assert states["tensorrt"]["reason"]
    assert document["problems"] == [p for p in document["problems"] if isinstance(p, str)]


def test_doctor_judges_a_bundle_under_a_deployment_profile(tiny_bundle: Path, tmp_path: Path) -> None:
    deployment = tmp_path / "deployment.toml"
    deployment.write_text('providers = ["cpu"]\nprecision = "fp32"\n[gpu]\ncuda_graphs = true\n')
    document = json.loads(crossforge("doctor", tiny_bundle, "--deployment", deployment, "--json").stdout)
    assert document["decision"] == "fp32 on cpu"
    refused = crossforge("doctor", "--deployment", deployment)
    assert refused.exit_code == 2
    assert "doctor BUNDLE --deployment FILE" in refused.stderr


def test_quantize_makes_a_variant_for_cuda_and_says_where_it_was_judged(tiny_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    result = crossforge("quantize", tiny_bundle, "--precision", "fp16_cuda", "--output", target)
    assert result.exit_code == 0, result.stderr
    variant = Bundle.open(target).manifest.variants[Precision.FP16_CUDA]
    assert variant.path == "onnx/model_fp16_cuda.onnx"
    assert variant.parity.passed
    assert variant.quantization["judged_on"] in ("cpu", "cuda")
    assert "Attention" in str(variant.quantization["fusion"])
    assert {node.domain for node in onnx.load(str(target / variant.path)).graph.node} == {"", "com.microsoft"}
    assert crossforge("verify", target).exit_code == 0
    built = crossforge("build", target, "--target", "sm86", "--precision", "fp16_cuda")
    assert built.exit_code == 2
    assert "for ONNX Runtime on CUDA" in " ".join(built.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["score", "BUNDLE", "-q", " ", "-p", "x"], 2, "is empty"),
        (["score", "BUNDLE"], 2, "either --query with --passage, or --pairs FILE"),
        (["score", "BUNDLE", "-q", "a", "-p", "b", "--provider", "tensorrt", "--strict"], 3, "cannot run here"),
        (["score", "BUNDLE", "-q", "a", "-p", "b", "--provider", "abacus"], 2, "auto, tensorrt, cuda, native, cpu"),
        (["score", "BUNDLE", "-q", "a", "-p", "b", "--precision", "fp16"], 2, "fp32, int8"),
        (["score", "BUNDLE", "-q", "a", "-p", "x" * 1_000_000], 2, "1,000,000 characters"),
        (["score", "/no/such/bundle", "-q", "a", "-p", "b"], 2, "crossforge export SOURCE"),
        (["rank", "BUNDLE", "-q", "a", "--passages", "/no/such/file"], 2, "No such file"),
        (["rank", "BUNDLE", "-q", "a", "--passages", "-", "--top-k", "0"], 2, "top_k"),
        (["rank", "BUNDLE", "-q", "a", "--passages", "-", "--chunk", "mean"], 2, "'max'"),
        (["score", "BUNDLE", "-q", "a", "-p", "b", "--window", "128"], 2, "--chunk max --window 128"),
        (["score", "BUNDLE", "-q", "a", "-p", "b", "--chunk", "max", "--overlap", "1"], 2, "0.0 to 0.9"),
        (["export", "/no/such/folder", "TARGET"], 2, "there is no folder"),
        (["export", "demo", "TARGET", "--precision", "fp12"], 2, "fp32"),
        (["export", "demo", "OCCUPIED"], 2, "is not a bundle"),
        (["trim", "BUNDLE", "TARGET"], 2, "there is no text to trim to"),
        (["trim", "BUNDLE", "TARGET", "--texts", "/no/such/file"], 2, "No such file"),
        (["trim", "BUNDLE", "TARGET", "--run", "/no/run"], 2, "cannot read /no/run"),
        (["trim", "BUNDLE", "OCCUPIED", "--texts", "-"], 2, "is not a bundle"),
        (["trim", "/no/such/bundle", "TARGET", "--texts", "-"], 2, "crossforge export SOURCE"),
        (["evaluate", "BUNDLE", "--run", "/no/run", "--qrels", "/no/qrels"], 2, "cannot read /no/run"),
        (["evaluate", "BUNDLE", "--run", "r", "--qrels", "q", "--min-relevance", "0"], 2, "min_relevance is too small"),
        (["evaluate", "BUNDLE", "--run", "r", "--qrels", "q", "--labels", "graded"], 2, "--labels says nothing of a run"),
        (["evaluate", "BUNDLE", "--pairs", "-", "--embedder", "x"], 2, "--embedder says nothing of pairs"),
        (["score", "BUNDLE", "-q", "a", "--pairs", "-"], 2, "what to score is not clear"),
        (["inspect", __file__], 2, "is a file, and a bundle is a folder"),
        (["rank", "BUNDLE", "-q", "a", "--passages", "-", "--format", "trec", "--qid", "a b"], 2, "--qid cannot stand in"),
        (["pairs", "BUNDLE", "-", "--seed", "-1"], 2, "the seed is too small"),
        (["tune", "BUNDLE", "--max-memory", "nan"], 2, "--max-memory is no size"),
        (["tune", "BUNDLE", "--budget", "-1"], 2, "got -1.0 s; allowed: more than 0"),
        (["serve", "BUNDLE", "--max-body-mb", "inf"], 2, "--max-body-mb is no size"),
        (["serve", "BUNDLE", "--tls-cert", __file__, "--tls-key", __file__], 2, "TLS cannot be set up"),
        (["native", "--compiler", "true"], 1, "the compiler wrote nothing"),
        (["push", "BUNDLE", "a/b", "--variants", "fp16", "--dry-run"], 2, "got fp16; allowed: fp32, int8"),
    ],
)
def test_bad_input_is_a_sentence_and_an_exit_status(
    demo_bundle: Path, tmp_path: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.txt").write_text("precious")
    places = {"BUNDLE": demo_bundle, "TARGET": tmp_path / "new", "OCCUPIED": tmp_path / "occupied"}
    result = crossforge(*(places.get(argument, argument) for argument in arguments), stdin="passage\n")
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "occupied" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("content", [b'{"text": "fine"}\n{"text": \n', b'{"text": "fine"}\n{"text": "\xff"}\n'])
def test_a_broken_line_is_named(demo_bundle: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_bytes(content)
    result = crossforge("rank", demo_bundle, "-q", "a", "--passages", path)
    assert result.exit_code == 2
    assert f"{path}, line 2" in result.stderr


def test_fallback_is_announced(demo_bundle: Path) -> None:
    result = crossforge("score", demo_bundle, "-q", "a", "-p", "b", "--provider", "cuda")
    assert result.exit_code == 0
    assert "Warning: running on cpu (not cuda:" in result.stderr


def test_debug_shows_the_traceback(demo_bundle: Path) -> None:
    result = crossforge("score", demo_bundle, "-q", " ", "-p", "x", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(("command", "exit_code"), [("table", 0), ("json", 0), ("table", 3), ("json", 3)])
def test_a_reader_that_left_is_no_error_and_a_full_disk_is_one(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, command: str, exit_code: int
) -> None:
    if exit_code:
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    with suppress(OSError), os.fdopen(target, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            app(["inspect", str(tiny_bundle), *(["--json"] if command == "json" else [])])
    assert ended.value.code == exit_code


def test_help_shows_what_stands_in_brackets() -> None:
    """Rich takes brackets for markup, and what begins with @ in them would vanish."""
    assert "OWNER/NAME[@REVISION]" in crossforge("inspect", "--help").stdout


def test_version_is_printed() -> None:
    assert crossforge("--version").stdout.startswith("crossforge 0.")


@pytest.mark.slow
def test_demo_exports_ranks_and_measures(demo_run: Path) -> None:
    document = json.loads((demo_run / PRINTED).read_text(encoding="utf-8"))
    assert document["results"][0]["text"].startswith("Berlin has about")
    runs_native = set(NATIVE_INSTRUCTION_SETS) & set(inspect_machine().instruction_sets) and shutil.which("g++") is not None
    assert list(document["variants"]) == ["fp32", "int8", *(["int8_native"] if runs_native else [])]
    for variant in document["variants"].values():
        assert variant["parity"]["passed"] is True
        assert variant["pairs_per_s"] > 0
        assert (demo_run / BUNDLE / variant["path"]).stat().st_size == variant["size_bytes"]


# quantize, and what judges it


def test_quantize_adds_a_variant(tiny_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    result = crossforge("quantize", tiny_bundle, "--precision", "fp16", "--output", target, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["bundle"] == str(target)
    assert list(document["variants"]) == ["fp32", "fp16", "int8"]
    assert document["variants"]["fp16"]["parity"]["passed"] is True
    assert document["variants"]["fp16"]["size_bytes"] == (target / "onnx" / "model_fp16.onnx").stat().st_size


def test_quantize_makes_int8_for_tensorrt(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--precision", "int8_qdq", "--ranges", "entropy", "--gate", "int8_qdq:min_kendall_tau=0.5")
    result = crossforge("quantize", tiny_bundle, *arguments, "--output", tmp_path / "bundle")
    assert result.exit_code == 0, result.stderr
    variant = Bundle.open(tmp_path / "bundle").manifest.variants[Precision.INT8_QDQ]
    assert "entropy" in str(variant.quantization["activations"])
    domains = {node.domain for node in onnx.load(str(tmp_path / "bundle" / variant.path)).graph.node}
    assert domains == {""}


def test_static_int8_is_made_on_request(tiny_bundle: Path, tmp_path: Path) -> None:
    result = crossforge(
        "quantize", tiny_bundle, "--int8", "static", "--gate", "min_kendall_tau=0", "--output", tmp_path / "b"
    )
    assert result.exit_code == 0, result.stderr
    variant = Bundle.open(tmp_path / "b").manifest.variants[Precision.INT8]
    assert variant.quantization["method"] == "static"


def test_a_missed_gate_is_exit_1_and_leaves_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "why.json"
    arguments = ("--precision", "fp16", "--gate", "fp16:min_kendall_tau=1.01", "--report", report)
    result = crossforge("quantize", tiny_bundle, *arguments, "--output", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "the fp16 variant does not rank like fp32" in result.stderr
    assert "allowed: Kendall tau of at least 1.01" in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["why.json"]
    assert "fp16" in json.loads(report.read_text())["variants"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gate", "tau=1"), "not a threshold"),
        (("--gate", "max_ndcg_loss=0.01"), "can only be held with judgements"),
        (("--report", "/no/such/folder/why.json"), "cannot write the report"),
        (("--precision", "int4"), "unknown precision"),
        (("--precision", "fp32"), "name variants to make of the fp32 graph"),
        (("--qrels", "qrels.txt"), "judgements need the pairs"),
        (("--verification", "nowhere.jsonl"), "cannot read nowhere.jsonl"),
    ],
)
def test_quantize_names_bad_input(tiny_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = crossforge("quantize", tiny_bundle, *arguments, "--output", tmp_path / "bundle")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--verification", "--calibration"])
def test_export_reads_its_pairs_before_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path, option: str) -> None:
    result = crossforge("export", tiny_checkpoint, tmp_path / "bundle", option, "nowhere.jsonl")
    assert result.exit_code == 2
    assert result.stderr == "Error: cannot read nowhere.jsonl (No such file or directory)\n"
    assert not list(tmp_path.iterdir())
