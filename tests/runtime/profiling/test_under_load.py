from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from crossforge.export.cli import app
from crossforge.profiles import Precision
from crossforge.runtime.profiling.report import LatencyReport
from support.builders import read_manifest, write_bundle
from support.http_reranker import HttpReranker, http_reranker
from support.reports import make_report

ONE_KIND = ("--candidates", "3", "--lengths", "32")
SHORT = ("--duration", "0.3")


def crossforge(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.INT8))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    run = tmp_path / "run.jsonl"
    passages = [{"id": str(i), "text": "the city " * (i + 1)} for i in range(3)]
    run.write_text(json.dumps({"qid": "1", "query": "where", "passages": passages}))
    return run


def test_load_at_several_rates_is_measured_and_kept(bundle: Path) -> None:
    result = crossforge("profile", bundle, *ONE_KIND, *SHORT, "--rate", "40,20", "--json")

    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    load = document["load"]
    assert (load["service"], load["requests"]) == ("int8 on cpu", "3 candidates of 32 tokens")
    assert [run["rate_per_s"] for run in load["runs"]] == [40, 20]
    assert all(run["requests"] == run["answered"] > 0 for run in load["runs"])
    assert document["rows"] == []
    report = LatencyReport.read("latency.json")
    assert report.load is not None
    assert [len(run.intended_s) for run in report.load.runs] == [run["requests"] for run in load["runs"]]
    assert report.load.runs[0].percentile_ms(99) == load["runs"][0]["p99_ms"]
    assert report.weights_sha256 == read_manifest(bundle).source.weights_sha256


def test_a_deployment_profile_is_put_under_load(bundle: Path) -> None:
    Path("tuned.toml").write_text('precision = "fp32"\nproviders = ["cpu"]\nworkers = 1\n')
    result = crossforge("profile", bundle, *ONE_KIND, *SHORT, "--rate", "40", "--deployment", "tuned.toml", "--json")

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["load"]["service"] == "fp32 on cpu by tuned.toml"


def test_a_rate_beyond_its_latency_ends_with_exit_status_1(bundle: Path) -> None:
    result = crossforge("profile", bundle, *ONE_KIND, *SHORT, "--rate", "40", "--slo-ms", "0.0001")

    assert result.exit_code == 1
    assert "latency counts from when each request was due" in result.stdout


def test_a_latency_that_no_rate_keeps_ends_with_exit_status_1(bundle: Path) -> None:
    result = crossforge("profile", bundle, *ONE_KIND, *SHORT, "--slo-ms", "0.0001")

    assert result.exit_code == 1, result.stderr
    assert "No rate keeps 99 of 100 within 0.0001 ms." in result.stdout


def test_load_stands_beside_the_rows_of_an_older_report(bundle: Path) -> None:
    grid = (*ONE_KIND, "--precision", "fp32", "--budget", "60", "--interval-width", "0.9", "--cold-starts", "1")
    assert crossforge("profile", bundle, *grid, "--out", "rows.json").exit_code == 0
    result = crossforge("profile", bundle, *ONE_KIND, *SHORT, "--rate", "20", "--add-to", "rows.json", "--html", "page.html")

    assert result.exit_code == 0, result.stderr
    rows, both = LatencyReport.read("rows.json"), LatencyReport.read("latency.json")
    assert both.rows == rows.rows
    assert both.load is not None
    page = Path("page.html").read_text(encoding="utf-8")
    assert 'id="load"' in page
    assert 'id="latency"' in page


def test_load_is_not_put_beside_rows_of_another_machine(bundle: Path) -> None:
    Path("rows.json").write_text(make_report().to_json())
    result = crossforge("profile", bundle, *ONE_KIND, *SHORT, "--rate", "20", "--add-to", "rows.json")

    assert result.exit_code == 2
    assert "measured on another machine" in result.stderr
    assert not Path("latency.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--candidates", "1,2", "--rate", "5"), "one kind of request"),
        (("--precision", "fp32,int8", "--rate", "5"), "one variant and one provider"),
        (("--rate", "0"), "rate"),
        (("--rate", "nan"), "rate"),
        (("--rate", "many"), "--rate is no list of numbers"),
        (("--rate", "5", "--duration", "0"), "the duration is not positive"),
        (("--rate", "5", "--slo-ms", "0"), "the SLO's latency is not positive"),
        (("--rate", "5", "--out", "absent/load.json"), "cannot write"),
        (("--rate", "5", "--compare", "old.json"), "--compare compares rows, and load has none"),
        (("--rate", "5", "--url", "http://localhost", "--precision", "int8"), "--precision is the service's choice"),
        (("--rate", "5", "--url", "localhost"), "this is no URL of a service"),
        (("--rate", "5", "--url", "http://127.0.0.1:9"), "does not answer"),
    ],
)
def test_bad_input_is_told(bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    result = crossforge("profile", bundle, "--lengths", "32", "--candidates", "3", *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not Path("latency.json").exists()


# Through a URL


def texts_of(server: HttpReranker) -> list[list[str]]:
    return [request["texts"] for request in server.requests]


def test_a_service_is_measured_without_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with http_reranker() as server:
        result = crossforge("profile", "--url", server.url, "--rate", "40", *SHORT, "--html", "page.html", "--json")

    assert result.exit_code == 0, result.stderr
    load = json.loads(result.stdout)["load"]
    assert (load["service"], load["requests"]) == (server.url, "20 candidates of 90 words")
    assert load["runs"][0]["answered"] > 0
    assert {len(texts) for texts in texts_of(server)} == {20}
    assert {len(text.split()) for texts in texts_of(server) for text in texts} == {90}
    assert 'id="load"' in Path("page.html").read_text(encoding="utf-8")
    report = LatencyReport.read("latency.json")
    assert (report.source, report.weights_sha256) == (server.url, None)


def test_a_run_is_sent_to_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_file: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with http_reranker() as server:
        result = crossforge("profile", "--url", server.url, "--rate", "40", *SHORT, "--workload", run_file)

    assert result.exit_code == 0, result.stderr
    assert "1 query of run.jsonl" in result.stdout
    assert server.requests[0]["texts"] == ["the city ", "the city the city ", "the city the city the city "]


def test_a_bundle_counts_the_tokens_of_what_a_service_is_sent(bundle: Path) -> None:
    with http_reranker() as server:
        result = crossforge("profile", bundle, "--url", server.url, *ONE_KIND, "--rate", "40", *SHORT)

    assert result.exit_code == 0, result.stderr
    assert "3 candidates of 32 tokens" in result.stdout
    assert {len(texts) for texts in texts_of(server)} == {3}


def test_what_a_service_does_not_answer_is_counted_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with http_reranker(statuses=(200, 429, 500)) as server:
        result = crossforge("profile", "--url", server.url, "--rate", "60", *SHORT, "--slo-ms", "1000")

    assert result.exit_code == 1
    assert "OverloadedError" in result.stdout
    assert "HTTP 500" in result.stdout
    assert "No rate keeps 99 of 100 within 1000 ms." in result.stdout


def test_a_service_without_an_answer_ends_with_exit_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with http_reranker(statuses=(200, *(500 for _ in range(1000)))) as server:
        result = crossforge("profile", "--url", server.url, "--rate", "60", *SHORT)

    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--url", "http://localhost", "--rate", "5", "--lengths", "32"), "--lengths counts tokens"),
        (("--rate", "5"), "there is nothing to measure"),
        ((), "there is nothing to measure"),
    ],
)
def test_what_needs_a_bundle_says_so(arguments: tuple[str, ...], message: str) -> None:
    result = crossforge("profile", *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
