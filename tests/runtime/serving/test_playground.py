"""What the playground's page asks of the service, asked without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from crossforge.profiles import Precision
from crossforge.runtime import Reranker
from crossforge.runtime.serving import playground
from crossforge.runtime.serving.models import ModelSpec, ServedModel, load_models
from crossforge.runtime.serving.playground.agreement import kendall_tau
from crossforge.runtime.serving.settings import ServiceSettings
from support.builders import fake_reranker, record_again, write_bundle
from support.mean_model import MeanModel
from support.serving import RunningService, fake_service, running

QUERY = "where is the city"
PASSAGES = ["a passage", "berlin is the city", "people", "the city of berlin where people live"]
LONG = "city " * 100
BODY = {"query": QUERY, "passages": PASSAGES}
SETTINGS = ServiceSettings(port=0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose int8 variant is another model, so that it ranks otherwise."""
    path = write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.INT8))
    MeanModel(seed=1).save(path / "onnx" / "model_int8.onnx")
    record_again(path, "onnx/model_int8.onnx")
    return path


@pytest.fixture
def two_variants(bundle: Path) -> Iterator[RunningService]:
    with running(load_models([ModelSpec(name="tiny", bundle=bundle)], SETTINGS, precision="fp32"), SETTINGS) as service:
        yield service


class TestPage:
    def test_it_refers_to_nothing_outside_the_service(self, service: RunningService) -> None:
        addresses: list[str] = []

        class Reader(HTMLParser):
            def handle_starttag(self, _tag: str, attributes: list[tuple[str, str | None]]) -> None:
                addresses.extend(value or "" for name, value in attributes if name in ("href", "src", "action"))
                assert not [name for name, _ in attributes if name == "style" or name.startswith("on")]

        page = service.get("/")
        Reader().feed(page.text)

        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert [address for address in addresses if not address.startswith("data:")] == [
            "playground/page.css",
            "playground/page.js",
        ]
        for address in ("playground/page.css", "playground/page.js"):
            assert not re.search(r"https?:|url\(|@import|innerHTML|eval\(", service.get(f"/{address}").text)

    @pytest.mark.parametrize("path", ["/", "/playground/page.css", "/playground/page.js"])
    def test_the_browser_is_told_to_keep_to_the_service(self, service: RunningService, path: str) -> None:
        headers = service.get(path).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))

        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert headers["x-content-type-options"] == "nosniff"

    def test_it_can_be_switched_off(self) -> None:
        with fake_service(playground=False) as service:
            assert service.get("/").status_code == 404
            assert service.get("/playground/page.js").status_code == 404
            assert service.post("/playground/rank", BODY).status_code == 404

    def test_its_files_are_part_of_the_package(self) -> None:
        names = {file.name for file in resources.files(playground).iterdir()}

        assert {"page.html", "page.css", "page.js"} <= names


class TestRank:
    def test_one_variant_ranks_as_the_reranker_does(self, service: RunningService) -> None:
        answer = service.post("/playground/rank", BODY).json()
        with fake_reranker() as reranker:
            expected = reranker.rank(QUERY, PASSAGES)

        (run,) = answer["runs"]
        assert [(row["index"], row["score"], row["text"]) for row in run["results"]] == [
            (row.corpus_id, row.score, row.text) for row in expected
        ]
        assert (run["variant"], run["precision"], run["provider"]) == ("fp32", "fp32", "cpu")
        assert run["tokens"] == sum(row["tokens"] for row in run["results"])
        assert run["batches"] >= 1
        assert 0 <= run["padding_waste"] < 1
        assert answer["kendall_tau"] is None

    def test_the_stages_add_up_to_the_total(self, service: RunningService) -> None:
        (run,) = service.post("/playground/rank", BODY).json()["runs"]

        assert set(run["stages_ms"]) == {"tokenize", "queue", "compute", "other"}
        assert sum(run["stages_ms"].values()) == pytest.approx(run["total_ms"])

    def test_it_tells_what_was_not_read(self, service: RunningService) -> None:
        query = "where is the city " * 10
        answer = service.post("/playground/rank", {"query": query, "passages": ["berlin", LONG]}).json()
        rows = {row["index"]: row for row in answer["runs"][0]["results"]}

        # The model reads 64 tokens, 3 of them special and 16 of them the query's: a word is a token here.
        assert answer["query_read"] == [0, len("where is the city " * 4) - 1]
        assert rows[0]["read"] == [0, len("berlin")]
        assert rows[1]["read"] == [0, len("city " * 45) - 1]
        assert all(row["truncated"] and row["query_truncated"] for row in rows.values())

    def test_unknown_tokens_are_counted(self, service: RunningService) -> None:
        (run,) = service.post("/playground/rank", {"query": QUERY, "passages": ["\U0010ffff berlin"]}).json()["runs"]

        assert run["results"][0]["unknown_tokens"] == 1

    @pytest.mark.parametrize(
        ("change", "status", "message"),
        [
            ({"query": " "}, 422, "the query is empty"),
            ({"passages": []}, 400, "nothing to rank"),
            ({"passages": ["a"] * 1001}, 413, "too many passages"),
            ({"model": "other"}, 404, "served: tiny"),
            ({"variants": ["int8"]}, 404, "offered: fp32"),
            ({"variants": ["fp32", "fp32"]}, 422, "name two"),
            ({"variants": ["a", "b", "c"]}, 422, "variants"),
            ({"surprise": 1}, 422, "surprise"),
        ],
    )
    def test_what_it_does_not_do_is_said(
        self, service: RunningService, change: dict[str, object], status: int, message: str
    ) -> None:
        answer = service.post("/playground/rank", {**BODY, **change})

        assert answer.status_code == status
        assert message in answer.json()["error"]

    def test_a_key_opens_it_as_it_does_the_rest(self) -> None:
        with fake_service(api_keys=("secret",)) as service:
            assert service.get("/").status_code == 200
            assert service.get("/playground/page.js").status_code == 200
            assert service.get("/playground/models").status_code == 401
            assert service.post("/playground/rank", BODY).status_code == 401
            key = {"authorization": "Bearer secret"}
            assert service.get("/playground/models", headers=key).status_code == 200
            assert service.post("/playground/rank", BODY, headers=key).status_code == 200


class TestVariants:
    def test_they_are_told_with_what_they_weigh(self, two_variants: RunningService, bundle: Path) -> None:
        (model,) = two_variants.get("/playground/models").json()["models"]

        assert [(variant["name"], variant["loaded"]) for variant in model["variants"]] == [("fp32", True), ("int8", False)]
        for variant, name in zip(model["variants"], ("model.onnx", "model_int8.onnx"), strict=True):
            assert variant["size_bytes"] == (bundle / "onnx" / name).stat().st_size

    def test_two_are_ranked_and_compared(self, two_variants: RunningService, bundle: Path) -> None:
        answer = two_variants.post("/playground/rank", {**BODY, "variants": ["fp32", "int8"]}).json()

        scores = []
        for run, precision in zip(answer["runs"], ("fp32", "int8"), strict=True):
            with Reranker.load(bundle, precision=precision) as reranker:
                expected = reranker.rank(QUERY, PASSAGES)
                scores.append(reranker.score(QUERY, PASSAGES))
            assert run["variant"] == precision
            assert [row["index"] for row in run["results"]] == [row.corpus_id for row in expected]
            assert [row["score"] for row in run["results"]] == pytest.approx([row.score for row in expected], abs=1e-5)
        assert answer["kendall_tau"] == pytest.approx(kendalltau(*scores).statistic)

    def test_a_comparison_is_one_request_of_its_model(self, two_variants: RunningService) -> None:
        two_variants.post("/playground/rank", {**BODY, "variants": ["int8", "fp32"]})
        metrics = two_variants.get("/metrics").text

        assert 'crossforge_requests_total{dialect="own",model="tiny",status="200"} 1.0' in metrics
        assert re.search(r'crossforge_batch_pairs_sum\{model="tiny:int8"\} 4\.0', metrics)
        assert 'crossforge_request_seconds_count{model="tiny' not in metrics

    def test_each_is_loaded_once_and_closed_in_the_end(self, bundle: Path) -> None:
        models = load_models([ModelSpec(name="tiny", bundle=bundle)], SETTINGS, precision="fp32")
        opened: list[Reranker] = []
        load = models["tiny"].open_variant
        assert load is not None

        def count(precision: Precision) -> Reranker:
            opened.append(load(precision))
            return opened[-1]

        models["tiny"].open_variant = count
        with running(models, SETTINGS) as service, ThreadPoolExecutor(8) as clients:
            body = {**BODY, "variants": ["int8"]}
            answers = list(clients.map(lambda _: service.post("/playground/rank", body).json(), range(16)))

        assert {answer["runs"][0]["variant"] for answer in answers} == {"int8"}
        assert len(opened) == 1
        assert opened[0]._closed

    def test_one_that_does_not_load_is_tried_again(self, two_variants: RunningService, bundle: Path) -> None:
        path = bundle / "onnx" / "model_int8.onnx"
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        body = {**BODY, "variants": ["int8"]}
        failed = two_variants.post("/playground/rank", body)
        path.write_bytes(content)

        assert failed.status_code == 500
        assert failed.json()["error"].startswith("the int8 variant cannot be used here: the bundle")
        assert two_variants.post("/playground/rank", BODY).status_code == 200
        assert two_variants.post("/playground/rank", body).status_code == 200

    def test_nobody_waits_longer_than_the_timeout_for_one(self, bundle: Path) -> None:
        settings = replace(SETTINGS, timeout_s=1)
        models = load_models([ModelSpec(name="tiny", bundle=bundle)], settings, precision="fp32")
        load, may_load = models["tiny"].open_variant, Event()
        assert load is not None
        models["tiny"].open_variant = lambda precision: load(precision) if may_load.wait(30) else pytest.fail("nobody came")
        with running(models, settings) as service:
            late = service.post("/playground/rank", {**BODY, "variants": ["int8"]})
            may_load.set()
            while (answer := service.post("/playground/rank", {**BODY, "variants": ["int8"]})).status_code == 504:
                pass

        assert late.status_code == 504
        assert "still being loaded" in late.json()["error"]
        assert answer.status_code == 200

    def test_a_reranker_without_a_bundle_has_the_one_it_runs(self) -> None:
        with fake_reranker() as reranker:
            assert ServedModel("tiny", reranker).open_variant is None
        with fake_service() as service:
            (model,) = service.get("/playground/models").json()["models"]
        assert [variant["name"] for variant in model["variants"]] == ["fp32"]


class TestAgreement:
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
    def test_it_is_kendalls_tau_b(self, scores: list[tuple[int, int]]) -> None:
        a, b = np.asarray(scores, dtype=np.float32).T
        tau = kendall_tau(a, b)

        if np.ptp(a) and np.ptp(b):
            assert tau == pytest.approx(kendalltau(a, b).statistic)
        else:
            assert tau == (0.0 if np.ptp(a) or np.ptp(b) else None)
