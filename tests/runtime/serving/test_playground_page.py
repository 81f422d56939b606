"""The playground in a real browser, on a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from crossforge.runtime.serving.models import ModelSpec, load_models
from crossforge.runtime.serving.settings import ServiceSettings
from support.chromium import Page, open_page, require_chromium
from support.serving import RunningService, fake_service, gated_service, running

pytestmark = pytest.mark.slow

QUERY = "How do I descale an espresso machine?"
PASSAGES = [
    "The airport opened nine years later than first planned.",
    "A violin has four strings tuned in fifths.",
    "To descale an espresso machine, dissolve citric acid in water, run half of it through and rinse twice.",
    "Espresso is brewed by pressing hot water through finely ground coffee.",
]
SETTINGS = ServiceSettings(port=0)
IDLE = "document.querySelector('#answer').getAttribute('aria-busy') === 'false'"
ORDER = "[...document.querySelectorAll('[data-variant={variant}] .row')].map((row) => Number(row.dataset.index))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    require_chromium()
    with open_page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Iterator[RunningService]:
    """The embedded model, served as fp32, so that int8 is the variant to be loaded."""
    with running(load_models([ModelSpec(name="demo", bundle=demo_bundle)], SETTINGS, precision="fp32"), SETTINGS) as service:
        yield service


@pytest.fixture
def page(browser: Page, demo: RunningService) -> Page:
    """The page of the embedded model, freshly opened."""
    return visit(browser, demo)


def visit(browser: Page, service: RunningService) -> Page:
    browser.send("Page.navigate", url="about:blank")
    browser.wait_for("location.href === 'about:blank'")
    browser.send("Emulation.clearDeviceMetricsOverride")
    browser.events.clear()
    browser.send("Page.navigate", url=service.url)
    browser.wait_for("document.body?.dataset.ready === 'true'")
    return browser


@contextmanager
def fake_page(browser: Page, **settings: object) -> Iterator[tuple[Page, RunningService]]:
    with fake_service(**settings) as service:
        yield visit(browser, service), service
        browser.send("Page.navigate", url="about:blank")


def enter(page: Page, query: str, passages: list[str]) -> None:
    page.type("#query", query)
    page.type("#passages", "\n".join(passages))


def wait_for_ranking(page: Page, *variants: str) -> None:
    shown = "JSON.stringify([...document.querySelectorAll('.run')].map((run) => run.dataset.variant))"
    page.wait_for(f"{IDLE} && {shown} === {json.dumps(json.dumps(list(variants), separators=(',', ':')))}")


def order(page: Page, variant: str) -> list[int]:
    found = page.evaluate(ORDER.format(variant=variant))
    assert isinstance(found, list)
    return found


def text(page: Page, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))


def wait_for_problem(page: Page, words: str) -> None:
    page.wait_for(f"document.querySelector('#problem:not([hidden])')?.textContent.includes({json.dumps(words)})")


def test_what_is_typed_is_ranked_as_by_the_reranker(page: Page, demo: RunningService) -> None:
    enter(page, QUERY, PASSAGES)
    page.click("#rank")
    wait_for_ranking(page, "fp32")
    expected = demo.models["demo"].reranker.rank(QUERY, PASSAGES)

    assert order(page, "fp32") == [row.corpus_id for row in expected]
    assert expected[0].corpus_id == 2
    shown = page.evaluate("[...document.querySelectorAll('.row .value')].map((score) => Number(score.title))")
    assert shown == pytest.approx([row.score for row in expected], abs=1e-4)
    assert text(page, ".row .text") == PASSAGES[2]
    assert "up 2; it was passage 3" in page.evaluate("document.querySelector('.row .move').textContent")
    assert text(page, "#status").startswith("4 passages ranked by fp32 in ")
    assert page.evaluate("document.querySelector('#status').getAttribute('aria-live')") == "polite"
    assert page.evaluate("document.querySelectorAll('.stages i').length") == 4


def test_it_runs_on_the_keyboard_alone(page: Page) -> None:
    page.evaluate("document.querySelector('#passages').focus()")
    page.press("Enter", ctrl=True)
    wait_for_ranking(page, "fp32")
    page.evaluate("document.querySelector('#variant input:checked').focus()")
    page.press("ArrowRight")
    wait_for_ranking(page, "int8")
    assert page.evaluate("document.activeElement.value") == "int8"

    reached = set()
    page.evaluate("document.querySelector('#query').focus()")
    for _ in range(12):
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
        page.press("Tab")
    assert {"query", "passages", "variant", "other", "rank"} <= reached


def test_two_variants_stand_side_by_side(page: Page, demo: RunningService) -> None:
    page.click("#other input[value=int8]")
    page.click("#rank")
    wait_for_ranking(page, "fp32", "int8")
    query = page.evaluate("document.querySelector('#query').value")
    passages = page.evaluate("document.querySelector('#passages').value").split("\n\n")
    answer = demo.post("/playground/rank", {"query": query, "passages": passages, "variants": ["fp32", "int8"]}).json()

    orders = [order(page, variant) for variant in ("fp32", "int8")]
    assert orders == [[row["index"] for row in run["results"]] for run in answer["runs"]]
    assert f"Kendall tau {answer['kendall_tau']:.3f}" in text(page, "#status")
    moved = {i for i in range(len(passages)) if orders[0].index(i) != orders[1].index(i)}
    marked = page.evaluate("[...document.querySelectorAll('[data-variant=int8] .moved')].map((row) => +row.dataset.index)")
    assert set(marked) == moved
    lefts = page.evaluate("[...document.querySelectorAll('.run')].map((run) => run.getBoundingClientRect().left)")
    assert lefts[0] < lefts[1]
    assert page.evaluate("document.querySelector('#other input[value=fp32]').disabled")


def test_what_the_model_does_not_read_is_struck_out(page: Page) -> None:
    page.click("#samples button:last-child")
    wait_for_ranking(page, "fp32")

    row = "[...document.querySelectorAll('.row')].find((row) => row.dataset.index === '0')"
    assert "512 tokens" in page.evaluate(f"{row}.querySelector('.meta').textContent")
    assert "characters read" in page.evaluate(f"{row}.querySelector('.meta').textContent")
    page.evaluate(f"{row}.querySelector('button').click()")
    unread = page.evaluate(f"{row}.querySelector('.unread').textContent")
    assert unread.endswith("The bridge was opened to traffic on 4 May 1931.")
    assert page.evaluate("document.querySelectorAll('.unread').length") == 1


def test_it_is_silent_and_asks_no_other_host(page: Page, demo: RunningService) -> None:
    page.click("#other input[value=int8]")
    page.click("#rank")
    wait_for_ranking(page, "fp32", "int8")

    assert page.console() == []
    asked = [address for address in page.requests() if not address.startswith("data:")]
    assert {address.removeprefix(demo.url) for address in asked} == {
        "/",
        "/playground/page.css",
        "/playground/page.js",
        "/playground/models",
        "/playground/rank",
    }
    assert page.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"


def test_markup_stays_text(page: Page) -> None:
    attacks = [
        """<img src=x onerror="document.title = 'owned'">""",
        "<script>document.title = 'owned'</script>",
        "<svg onload=\"document.title = 'owned'\">",
        "</p></li><b>bold</b> &lt;i&gt;",
    ]
    page.click("#other input[value=int8]")
    enter(page, attacks[0], attacks)
    page.click("#rank")
    wait_for_ranking(page, "fp32", "int8")

    shown = page.evaluate("[...document.querySelectorAll('[data-variant=fp32] .text')].map((text) => text.textContent)")
    assert sorted(shown) == sorted(attacks)
    assert page.evaluate("document.querySelectorAll('#answer :is(img, script, svg, p b, li > b)').length") == 0
    assert page.evaluate("document.title") == "crossforge playground"
    assert page.console() == []


def test_the_browser_would_make_no_markup_of_text(page: Page) -> None:
    made = "(() => { try { document.body.innerHTML = '<b>'; return 'made'; } catch (error) { return error.name; } })()"

    assert page.evaluate(made) == "TypeError"


@pytest.mark.parametrize("width", [320, 400])
def test_a_narrow_screen_scrolls_down_alone(page: Page, width: int) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=2, mobile=True)
    page.click("#other input[value=int8]")
    enter(page, "city", ["x" * 400, *PASSAGES])
    page.click("#rank")
    wait_for_ranking(page, "fp32", "int8")

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert (
        page.evaluate("Math.max(...[...document.querySelectorAll('.run *')].map((e) => e.getBoundingClientRect().right))")
        <= width
    )


def test_it_is_light_or_dark_as_its_reader_prefers(page: Page) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    page.prefer("light")

    assert backgrounds == ["rgb(255, 255, 255)", "rgb(22, 25, 29)"]


def test_every_field_has_a_name(page: Page) -> None:
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"textbox", "button", "radio", "combobox", "group", "radiogroup"}
    named = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node.get("role", {}).get("value") in roles]

    assert {("textbox", "Query"), ("textbox", "Passages"), ("button", "Rank"), ("radio", "int8")} <= set(named)
    assert all(name for _, name in named), named


def test_problems_are_told_in_words(browser: Page) -> None:
    with fake_page(browser, max_passages=3) as (page, service):
        enter(page, " ", PASSAGES)
        page.click("#rank")
        wait_for_problem(page, "There is no query.")
        assert page.evaluate("document.activeElement.id") == "query"
        enter(page, QUERY, PASSAGES)
        page.click("#rank")
        wait_for_problem(page, "That is more than this service takes: Too many passages")
        enter(page, QUERY, PASSAGES[:3])
        page.click("#rank")
        wait_for_ranking(page, "fp32")
        assert page.evaluate("document.querySelector('#problem').hidden")
        service.server.should_exit = True
        page.wait_for("fetch('ready').then(() => false, () => true)")
        page.click("#rank")
        wait_for_problem(page, "The service does not answer.")


def test_a_full_queue_is_told_in_words(browser: Page) -> None:
    with gated_service(max_queue_tokens=300) as (service, session), ThreadPoolExecutor(1) as other:
        page = visit(browser, service)
        held = other.submit(service.post, "/playground/rank", {"query": QUERY, "passages": PASSAGES})
        session.wait_for_a_batch()
        enter(page, QUERY, PASSAGES)
        page.click("#rank")
        wait_for_problem(page, "The service is busy. Try again in ")
        session.let_through()
        assert held.result().status_code == 200
        page.click("#rank")
        wait_for_ranking(page, "fp32")
        browser.send("Page.navigate", url="about:blank")


def test_a_key_is_asked_for_and_kept_in_memory_alone(browser: Page) -> None:
    with fake_page(browser, api_keys=("open-sesame",)) as (page, _):
        wait_for_problem(page, "asks for an API key")
        page.type("#key", "wrong")
        page.press("Enter")
        wait_for_problem(page, "does not know this API key")
        page.type("#key", "open-sesame")
        page.press("Enter")
        page.wait_for("document.querySelector('#problem').hidden")
        page.click("#rank")
        wait_for_ranking(page, "fp32")

        assert page.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"
        assert not [address for address in page.requests() if "sesame" in address]
        page.send("Page.reload")
        page.wait_for("document.body?.dataset.ready === 'true' && document.querySelector('#key').value === ''")
