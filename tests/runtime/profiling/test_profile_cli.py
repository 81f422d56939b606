from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from crossforge.export.cli import app
from crossforge.profiles import Precision
from crossforge.runtime.profiling.report import STAGES, LatencyReport
from support.builders import read_manifest, write_bundle

QUICK = ("--candidates", "1,4", "--lengths", "16,32", "--budget", "60", "--interval-width", "0.9", "--cold-starts", "1")


def crossforge(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.INT8))


def test_a_grid_is_measured_and_reported(bundle: Path) -> None:
    result = crossforge("profile", bundle, *QUICK, "--lengths", "16,900", "--json")

    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [(row["precision"], row["candidates"], row["sequence_length"]) for row in document["rows"]] == [
        (precision, candidates, length) for candidates, length in ((1, 16), (1, 64), (4, 16), (4, 64))
        for precision in ("fp32", "int8")
    ]  # fmt: skip
    assert document["rows"][0]["p50_ms"] <= document["rows"][0]["p99_ms"]
    assert set(document["rows"][0]["stages_ms"]) == set(STAGES)
    assert {"what": "900 tokens", "why": "the model reads 64 at most, which are measured in their place"} in document[
        "skipped"
    ]
    assert [facts["kendall_tau"] for facts in document["variants"]] == [1.0, 1.0]
    report = LatencyReport.read("latency.json")
    assert report.rows[0].percentile_ms(50) == document["rows"][0]["p50_ms"]
    assert report.weights_sha256 == read_manifest(bundle).source.weights_sha256
    assert crossforge("verify", bundle).exit_code == 0


def test_a_run_is_measured_and_compared_with_itself(bundle: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    passages = [{"id": str(i), "text": "the city " * (i + 1)} for i in range(3)]
    run.write_text(json.dumps({"qid": "1", "query": "where", "passages": passages}))
    arguments = ("profile", bundle, "--workload", run, *QUICK[4:], "--precision", "fp32")
    first = crossforge(*arguments, "--out", "old.json")
    second = crossforge(*arguments, "--compare", "old.json", "--tolerance", "1000", "--json")

    assert first.exit_code == 0, first.stderr
    assert "candidates" in first.stdout
    assert "Every sample is in old.json." in first.stdout
    assert second.exit_code == 0, second.stderr
    (row,) = json.loads(second.stdout)["comparison"]["rows"]
    assert (row["candidates"], row["verdict"]) == (3, "same")


def test_a_slowdown_ends_with_exit_status_1(bundle: Path) -> None:
    arguments = ("profile", bundle, *QUICK, "--precision", "fp32")
    assert crossforge(*arguments, "--out", "old.json").exit_code == 0
    document = json.loads(Path("old.json").read_text())
    for row in document["rows"]:
        row["samples_ms"] = [sample / 1e6 for sample in row["samples_ms"]]
    Path("old.json").write_text(json.dumps(document))
    result = crossforge(*arguments, "--compare", "old.json")

    assert result.exit_code == 1
    assert "slower" in result.stdout
    assert "4 rows compared: 4 slower" in result.stderr


def test_a_report_of_another_machine_is_refused_before_anything_is_measured(bundle: Path) -> None:
    assert crossforge("profile", bundle, *QUICK, "--precision", "fp32", "--out", "old.json").exit_code == 0
    document = json.loads(Path("old.json").read_text())
    document["machine"]["cpu"] = "Another CPU"
    Path("old.json").write_text(json.dumps(document))
    result = crossforge("profile", bundle, "--compare", "old.json")

    assert result.exit_code == 2
    assert "another machine" in result.stderr
    assert not Path("latency.json").exists()


def test_a_page_is_written_by_whoever_can(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_latency_page(report: LatencyReport, path: Path) -> None:
        path.write_text(f"{len(report.rows)} rows")

    page = ModuleType("crossforge.export.latency_page")
    monkeypatch.setattr(page, "write_latency_page", write_latency_page, raising=False)
    monkeypatch.setattr(page, "write_latency_picture", lambda _, path: path.write_bytes(b"PNG"), raising=False)
    monkeypatch.setattr(page, "require_page_library", lambda: None, raising=False)
    monkeypatch.setitem(sys.modules, page.__name__, page)
    arguments = (
        "profile",
        bundle,
        *QUICK[2:],
        "--candidates",
        "1",
        "--precision",
        "fp32",
        "--html",
        "page.html",
        "--png",
        "plots.png",
    )

    assert crossforge(*arguments).exit_code == 0
    assert Path("page.html").read_text() == "2 rows"
    assert Path("plots.png").read_bytes() == b"PNG"
    monkeypatch.setitem(sys.modules, page.__name__, None)
    result = crossforge(*arguments)
    assert result.exit_code == 3
    assert 'pip install "crossforge[report]"' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--provider", "abacus"), 2, "unknown execution provider"),
        (("--precision", "fp64"), 2, "unknown precision"),
        (("--precision", "fp16"), 2, "no fp16 variant"),
        (("--candidates", "many"), 2, "no list of numbers"),
        (("--candidates", "0"), 2, "cannot be measured"),
        (("--lengths", "3"), 2, "no length can be measured"),
        (("--workload", "absent.jsonl"), 2, "absent.jsonl"),
        (("--workload", "run.jsonl", "--lengths", "32"), 2, "takes the place of a grid"),
        (("--out", "absent/latency.json"), 2, "cannot write"),
        (("--compare", "absent.json"), 2, "cannot read the latency report"),
        (("--provider", "tensorrt"), 3, "nothing can be measured"),
        (("--budget", "0.000001", *QUICK[:4], "--cold-starts", "1"), 2, "too short for one sample"),
        (("--deployment", "absent.toml"), 2, "cannot read the deployment profile absent.toml"),
        (("--url", "http://localhost"), 2, "--url is for load"),
        (("--add-to", "old.json"), 2, "--add-to is for load"),
        (("--png", "absent/latency.png"), 2, "cannot write"),
    ],
)
def test_bad_input_is_told(bundle: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    result = crossforge("profile", bundle, *arguments)

    assert result.exit_code == status, result.stderr
    assert words in result.stderr
    assert not Path("latency.json").exists()


def test_a_workload_without_pairs_is_refused(bundle: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    run.write_text(json.dumps({"qid": "1", "query": "where", "passages": []}))
    result = crossforge("profile", bundle, "--workload", run)

    assert result.exit_code == 2
    assert "holds no pair" in result.stderr


def test_a_deployment_profile_is_measured_beside_the_variants_and_compared_as_itself(bundle: Path) -> None:
    Path("tuned.toml").write_text('precision = "int8"\nproviders = ["cpu"]\nworkers = 1\nbudget_tokens = 40\n')
    arguments = ("profile", bundle, *QUICK[4:], "--candidates", "4", "--lengths", "32", "--precision", "int8")
    result = crossforge(*arguments, "--deployment", "tuned.toml", "--json")

    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [(row["precision"], row["deployment"]) for row in document["rows"]] == [("int8", None), ("int8", "tuned.toml")]
    plain, tuned = document["variants"]
    assert (tuned["workers"], tuned["budget_tokens"]) == (1, 40)
    assert plain["budget_tokens"] != 40
    assert min(tuned["load_ms"], tuned["first_call_ms"], tuned["resident_bytes"]) > 0
    assert LatencyReport.read("latency.json").rows[1].deployment == "tuned.toml"

    again = crossforge(*arguments, "--compare", "latency.json", "--tolerance", "1000", "--out", "new.json")
    assert again.exit_code == 0, again.stderr
    assert "1 rows compared" in again.stderr
    assert "1 rows in one report only" in again.stderr


def test_a_deployment_profile_that_cannot_run_here_is_named_and_the_rest_is_measured(bundle: Path) -> None:
    Path("gpu.toml").write_text('providers = ["tensorrt"]\n')
    arguments = ("--candidates", "1", "--lengths", "32", "--precision", "fp32", "--deployment", "gpu.toml")
    result = crossforge("profile", bundle, *QUICK[4:], *arguments)

    assert result.exit_code == 0, result.stderr
    assert "Not measured: gpu.toml: no execution provider can run here (tensorrt: no NVIDIA" in result.stderr
