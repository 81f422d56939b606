from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from crossforge.export.latency_page import write_latency_page, write_latency_picture
from crossforge.export.latency_page.plotted import (
    BETWEEN_STAGES,
    CUT_SHORT,
    Names,
    chosen_cells,
    latency_records,
    load_records,
    log_ticks,
    pareto_front,
    quality_records,
    spread,
    stage_records,
)
from crossforge.profiles import InputError, MissingPackageError, Precision
from crossforge.runtime.profiling.load_report import Outcome
from crossforge.runtime.profiling.report import Skipped
from support.chromium import open_page, require_chromium
from support.latency import (
    LENGTHS,
    make_latency_report,
    make_latency_row,
    make_load_curve,
    make_load_run,
    make_variant_facts,
    on_another_provider,
)

FIGURES = ("latency", "heat-map", "stages", "trade-off")
LOAD = make_load_curve()


class Elements(HTMLParser):
    """Every element's attributes, and the text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag
        self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open][-1] += data

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.found if "id" in attributes}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "latency.html"
    write_latency_page(make_latency_report(load=LOAD), path)
    return path


@pytest.fixture(scope="module")
def elements(page: Path) -> Elements:
    return Elements(page.read_text(encoding="utf-8"))


def test_the_page_points_at_nothing_outside(elements: Elements) -> None:
    addresses = [a[name] for _, a in elements.found for name in ("src", "href", "srcset", "data", "action") if name in a]
    assert addresses == ["data:,"]
    assert not {tag for tag, _ in elements.found} & {"iframe", "object", "embed", "base", "img"}
    for style in elements.text["style"]:
        assert "@import" not in style
        assert "url(" not in style


def test_the_page_forbids_the_browser_every_request(elements: Elements) -> None:
    policies = [a["content"] for tag, a in elements.found if tag == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none';")
    assert "http" not in policies[0]


def test_the_page_has_a_place_and_a_specification_for_every_figure(elements: Elements) -> None:
    specifications = next(
        json.loads(text)
        for (_, attributes), text in zip(
            [element for element in elements.found if element[0] == "script"], elements.text["script"], strict=True
        )
        if attributes.get("id") == "specifications"
    )
    assert set(specifications) == {*FIGURES, "load"}
    assert set(specifications) <= elements.ids()
    assert not [spec for spec in specifications.values() if "url" in spec.get("data", {})]


def test_the_page_shows_every_row_and_variant(elements: Elements) -> None:
    report = make_latency_report()
    cells = {cell.strip() for cell in elements.text["td"]}
    assert len(elements.text["tr"]) == 4 + len(report.rows) + len(report.variants) + len(report.skipped) + len(LOAD.runs)
    for row in report.rows:
        assert {f"{row.percentile_ms(percent):,.2f}" for percent in (50, 90, 95, 99)} <= cells
    assert {"90.9 MB", "0.9842", "0.4196", "61%"} <= cells


def test_the_page_says_what_was_not_measured_and_on_what(elements: Elements) -> None:
    report = make_latency_report()
    cells, facts = elements.text["td"], " ".join(elements.text["dd"])
    for skipped in report.skipped:
        assert skipped.what in cells
        assert skipped.why in cells
    for name, version in report.versions.items():
        assert f"{name} {version}" in facts
    assert report.machine.cpu in facts


def test_text_from_a_report_cannot_become_markup(tmp_path: Path) -> None:
    path = tmp_path / "latency.html"
    hostile = "</script><img src=http://example.org>"
    report = make_latency_report(source=hostile, skipped=(Skipped(what=hostile, why=hostile),))
    write_latency_page(report, path)
    found = Elements(path.read_text(encoding="utf-8"))
    assert "img" not in {tag for tag, _ in found.found}
    assert hostile in found.text["td"]


def test_a_report_of_one_call_is_a_page(tmp_path: Path) -> None:
    report = make_latency_report(
        rows=(make_latency_row(Precision.FP32, 10, 64),),
        variants=(make_variant_facts(Precision.FP32, kendall_tau=None, ndcg_at_10=None, gemm_share=None),),
        skipped=(),
    )
    path = tmp_path / "latency.html"
    write_latency_page(report, path)
    found = Elements(path.read_text(encoding="utf-8"))
    assert {"latency", "heat-map", "stages"} <= found.ids()
    assert not {"trade-off", "load", "runs", "skipped"} & found.ids()


def test_load_alone_is_a_page_and_a_picture(tmp_path: Path) -> None:
    report = make_latency_report(
        source="http://localhost:8080",
        weights_sha256=None,
        peak_resident_bytes=None,
        import_ms=None,
        variants=(),
        rows=(),
        skipped=(),
        load=LOAD,
    )
    write_latency_page(report, tmp_path / "latency.html")
    write_latency_picture(report, tmp_path / "latency.png")
    found = Elements((tmp_path / "latency.html").read_text(encoding="utf-8"))

    assert {"load", "runs"} <= found.ids()
    assert not {*FIGURES, "rows", "variants"} & found.ids()
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_load_without_an_answer_is_a_table_and_no_plot(tmp_path: Path) -> None:
    run = make_load_run(10, outcomes=(Outcome.REJECTED,) * 20, errors={"OverloadedError": 20})
    write_latency_page(make_latency_report(load=make_load_curve(runs=(run,))), tmp_path / "latency.html")
    found = Elements((tmp_path / "latency.html").read_text(encoding="utf-8"))

    assert "runs" in found.ids()
    assert "load" not in found.ids()


def test_the_load_curve_shows_the_percentiles_of_every_run_by_rate() -> None:
    records = load_records(LOAD)
    by_rate = {run.rate_per_s: run for run in LOAD.runs}

    assert [record["rate"] for record in records[::3]] == [5, 10, 20, 30, 40, 50]
    for record in records:
        percent = int(record["percentile"].removeprefix("p"))
        assert record["ms"] == pytest.approx(by_rate[record["rate"]].percentile_ms(percent), rel=1e-4)
    assert {record["rate"] for record in records if record["run"] == CUT_SHORT} == {50}


def test_the_caption_of_the_load_says_which_rate_keeps_the_objective(elements: Elements) -> None:
    (caption,) = [text for text in elements.text["figcaption"] if "Requests arrive" in text]
    assert LOAD.max_rate_per_s == 20
    assert "what 99 of 100 must keep, 50 ms: 20 requests/s do." in caption


def test_a_report_with_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row"):
        write_latency_page(make_latency_report(rows=()), tmp_path / "latency.html")


def test_a_file_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_latency_page(make_latency_report(), tmp_path / "nowhere" / "latency.html")


def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossforge.export.requirements.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r'pip install "crossforge\[report\]"'):
        write_latency_page(make_latency_report(), tmp_path / "latency.html")
    assert not (tmp_path / "latency.html").exists()


def test_a_picture_is_written_without_a_browser(tmp_path: Path) -> None:
    for theme in ("light", "dark"):
        write_latency_picture(make_latency_report(load=LOAD), tmp_path / f"{theme}.png", theme=theme)
        assert (tmp_path / f"{theme}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="light, dark"):
        write_latency_picture(make_latency_report(), tmp_path / "no.png", theme="sepia")


def test_variants_are_named_by_precision_provider_where_there_are_several_and_deployment() -> None:
    report = make_latency_report()
    assert Names(report).all == ("fp32", "fp16", "int8")
    assert Names(on_another_provider(report, "cuda")).all[-1] == "int8 · cuda"
    tuned = tuple(replace(row, deployment="deployment.toml") for row in report.rows if row.precision is Precision.INT8)
    assert Names(replace(report, rows=report.rows + tuned)).all == ("fp32", "fp16", "int8", "int8 · deployment.toml")


def test_plotted_percentiles_are_those_of_the_samples() -> None:
    report = make_latency_report()
    for row, record in zip(report.rows, latency_records(report), strict=True):
        for percent in (50, 90, 95, 99):
            assert record[f"p{percent}_ms"] == pytest.approx(row.percentile_ms(percent), rel=1e-4)


def test_stage_shares_add_up_to_the_call() -> None:
    report = make_latency_report()
    by_call: dict[tuple[object, ...], list[float]] = {}
    for record in stage_records(report):
        by_call.setdefault((record["variant"], record["candidates"], record["length"]), []).append(record["share"])
    assert len(by_call) == len(report.rows)
    assert {len(shares) for shares in by_call.values()} == {6}
    assert all(sum(shares) == pytest.approx(1.0) for shares in by_call.values())
    assert BETWEEN_STAGES in {record["stage"] for record in stage_records(report)}


def test_the_pareto_front_is_what_nothing_beats() -> None:
    assert pareto_front([(1, 3), (2, 2), (3, 1)]) == {0, 1, 2}
    assert pareto_front([(1, 3), (2, 3), (2, 2)]) == {1}
    assert pareto_front([(1, 1), (1, 1)]) == {0, 1}
    assert pareto_front([]) == set()


def test_quality_stands_beside_the_speed_of_a_cell_that_every_variant_has() -> None:
    quality = quality_records(make_latency_report())
    assert quality is not None
    assert (quality.measure, quality.candidates, quality.sequence_length) == ("nDCG@10", 200, LENGTHS[2])
    assert {point["variant"]: point["on_front"] for point in quality.points} == {"fp32": True, "fp16": False, "int8": True}
    assert quality.unknown == ()


def test_quality_is_rank_agreement_where_variants_were_not_judged() -> None:
    report = make_latency_report()
    unjudged = replace(report, variants=tuple(replace(variant, ndcg_at_10=None) for variant in report.variants))
    quality = quality_records(unjudged)
    assert quality is not None
    assert quality.measure == "Kendall's tau"
    assert quality.unknown == ("fp32",)


def test_a_choice_of_values_keeps_the_ends() -> None:
    assert spread([1, 3, 5], 4) == [1, 3, 5]
    assert spread(range(1, 101), 3)[0::2] == [1, 100]


def test_bars_stand_for_the_whole_grid_or_the_whole_workload() -> None:
    cells = chosen_cells(make_latency_report())
    assert len(cells) == 14
    assert {(1, 32), (200, 32), (50, 128), (100, 512)} <= set(cells)
    workload = make_latency_report(rows=tuple(make_latency_row(Precision.INT8, n, 10 * n) for n in range(1, 40)))
    assert chosen_cells(workload)[0::14] == [(1, 10), (39, 390)]


def test_a_logarithmic_axis_is_labelled_within_its_values() -> None:
    assert log_ticks([2, 700]) == [3, 10, 30, 100, 300]
    assert log_ticks([4, 60]) == [5, 10, 20, 50]
    assert log_ticks([7]) == [7]


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True], ids=["three variants", "six variants"])
def test_a_browser_draws_every_figure_in_light_and_dark(tmp_path: Path, many: bool) -> None:
    require_chromium()
    report = make_latency_report(load=LOAD)
    path = tmp_path / "latency.html"
    write_latency_page(on_another_provider(report, "cuda") if many else report, path)
    with open_page(tmp_path) as tab:
        backgrounds = set()
        for scheme in ("light", "dark"):
            tab.prefer(scheme)
            if scheme == "light":
                tab.send("Page.navigate", url=path.as_uri())
            tab.wait_for(f"document.body?.dataset.drawn === '{scheme}'")
            for key in (*FIGURES, "load"):
                marks = tab.evaluate(f"document.querySelectorAll('#{key} svg [role=graphics-symbol]').length")
                assert marks >= 3, key
                assert tab.evaluate(f"document.querySelector('#{key} svg').getBoundingClientRect().width") > 300, key
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            backgrounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            tab.screenshot(tmp_path / f"{scheme}.png")
            assert (tmp_path / f"{scheme}.png").stat().st_size > 50_000
        assert len(backgrounds) == 2
        for key in ("latency", "heat-map", "trade-off"):
            shown = "document.querySelector('#vg-tooltip-element.visible')?.innerText.includes('pairs/s')"
            tab.hover(f"#{key} path[aria-label*='pairs/s']", until=shown)
        shown = "document.querySelector('#vg-tooltip-element.visible')?.innerText.includes('not answered')"
        tab.hover("#load path[aria-label*='not answered']", until=shown)
        assert tab.console() == []
        assert [address for address in tab.requests() if not address.startswith(("file:", "data:"))] == []


def test_nothing_is_imported_until_a_page_is_drawn() -> None:
    code = "import crossforge.export.latency_page, sys; assert not {'altair', 'vl_convert', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
