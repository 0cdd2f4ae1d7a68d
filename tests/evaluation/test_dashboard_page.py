"""The dashboard of an ordinary study in headless Chromium: what is drawn, and what filters, clicks and keys do."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterator
from typing import Any

import pytest

from evaluation.dashboard import write_dashboard
from evaluation.result import RunResult
from tests.evaluation.browser import Browser
from tests.evaluation.studies import small_study

CHARTS = ("ratio", "cost", "tasks", "stability", "correlations", "events", "parallel", "widths")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def results(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> list[RunResult]:
    """The finished runs of a study of twelve, whose page is open."""
    study = tmp_path_factory.mktemp("runs") / "mine"
    found = small_study(study)
    browser.open(write_dashboard(study))
    return found


@pytest.fixture
def page(browser: Browser, results: list[RunResult]) -> Browser:
    """The study's page, as it is when it has just been opened."""
    browser.run("document.querySelector('dialog').close(); document.getElementById('reset').click(); drawing")
    return browser


def traces(page: Browser, chart: str) -> list[dict[str, Any]]:
    fields = (
        "({name: t.name, x: [...t.x], y: [...t.y], mode: t.mode, error: t.error_y && [...(t.error_y.array ?? [])]})"
    )
    return page.run(f"drawing.then(() => CHARTS.find(c => c.id === '{chart}').place.data.map(t => {fields}))")


def column(page: Browser, label: str) -> list[str]:
    """The texts of one column of the table of runs."""
    return page.run(
        f"""(() => {{
            const index = [...document.querySelectorAll('#runs thead th')].findIndex(th => th.textContent === '{label}');
            return [...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[index]?.textContent ?? '');
        }})()"""
    )


def click(page: Browser, selector: str) -> None:
    """Click and wait until everything is drawn anew."""
    page.run(f"document.querySelector({selector!r}).click(); drawing")


def untick(page: Browser, facet: str, value: str) -> None:
    click(page, f"[data-facet={facet}] input[value='{value}']")


def test_every_chart_is_drawn_without_an_error_or_a_request(page: Browser) -> None:
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page.run("location.href")]
    drawn = page.run("CHARTS.map(c => [c.id, c.place.querySelectorAll('.main-svg').length, c.place.data.length])")
    assert [name for name, _, _ in drawn] == list(CHARTS)
    assert all(nodes > 0 and data > 0 for _, nodes, data in drawn)
    assert page.run("document.querySelectorAll('.plot .point, .plot .js-line, .plot .hm').length") > 50


def test_the_header_counts_the_runs(page: Browser) -> None:
    assert page.run("document.querySelector('h1').textContent") == "mine"
    assert page.run("document.getElementById('summary').textContent").startswith("12 runs: 11 done, 1 failed · made 20")
    assert "schedule one_shot" in page.run("document.getElementById('common').textContent")


def test_curves_are_means_over_seeds_with_their_deviation(page: Browser, results: list[RunResult]) -> None:
    curve = next(trace for trace in traces(page, "ratio") if trace["name"] == "taylor" and trace["mode"] != "lines")
    at = [result for result in results if result.choices["importance"] == "taylor"]
    for index, ratio in enumerate((0.1, 0.2, 0.5)):
        seeds = [one.metrics["recovered/zeroshot/mean"] for one in at if one.config["pruning"]["ratio"] == ratio]
        assert len(seeds) == 2
        assert curve["x"][index] == pytest.approx(ratio + 0.0007)
        assert curve["y"][index] == pytest.approx(statistics.mean(seeds))
        assert curve["error"][index] == pytest.approx(statistics.stdev(seeds))
    dense = next(trace for trace in traces(page, "ratio") if trace["name"] == "dense model")
    assert dense["y"] == [pytest.approx(results[0].metrics["dense/zeroshot/mean"])] * 2


def test_the_pareto_front_is_that_of_the_shown_runs(page: Browser, results: list[RunResult]) -> None:
    names = ("params", "zeroshot/mean")
    points = [tuple(one.metrics[f"recovered/{name}"] for name in names) for one in results]
    points.append(tuple(results[0].metrics[f"dense/{name}"] for name in names))
    front = sorted(
        (cost, value)
        for cost, value in set(points)
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    )
    drawn = traces(page, "cost")[0]
    assert list(zip(drawn["x"], drawn["y"], strict=True)) == [pytest.approx(point) for point in front]


def test_a_filter_acts_on_the_table_and_on_every_chart(page: Browser) -> None:
    untick(page, "importance", "l2")
    assert set(column(page, "estimator")) == {"taylor"}
    assert page.run("document.getElementById('count').textContent") == "6 of 12 runs"
    assert page.run("document.querySelector('[data-facet=importance]').classList.contains('narrowed')")
    for chart in set(CHARTS) - {"widths", "correlations"}:
        names = {trace.get("name") for trace in traces(page, chart)}
        assert "taylor" in names
        assert "l2" not in names
    assert len(traces(page, "widths")[0]["y"]) == 6
    click(page, "#reset")
    assert len(column(page, "estimator")) == 12
    assert "l2" in {trace["name"] for trace in traces(page, "ratio")}


def test_the_search_finds_runs_by_any_of_their_words(page: Browser) -> None:
    box = "document.querySelector('input[type=search]')"
    page.run(f"{box}.value = 'NOT finite'; {box}.dispatchEvent(new Event('input')); drawing")
    assert column(page, "state") == ["failed"]
    assert "No finished run" in page.run("document.querySelector('#ratio figcaption').textContent")
    assert page.run("document.querySelectorAll('#ratio .main-svg').length") == 0
    click(page, "#reset")
    assert page.run("document.querySelectorAll('#ratio .main-svg').length") > 0


def test_a_line_is_fitted_to_eight_runs_or_more(page: Browser) -> None:
    caption = "document.querySelector('#stability figcaption').textContent"
    assert "least squares" in [trace["name"] for trace in traces(page, "stability")]
    assert "11 runs: Pearson r" in page.run(caption)
    untick(page, "ratio", "0.5")
    assert "8 runs: Pearson r" in page.run(caption)
    untick(page, "seed", "1")
    assert "Too few runs for a line: 4, and 8 are needed." in page.run(caption)
    assert "least squares" not in [trace["name"] for trace in traces(page, "stability")]


def test_columns_sort_both_ways_with_what_is_missing_last(page: Browser) -> None:
    head = "#runs thead th:nth-child({}) button"
    index = page.run("[...document.querySelectorAll('#runs thead th')].findIndex(th => th.textContent === 'recovered')")
    for direction in ("ascending", "descending"):
        click(page, head.format(index + 1))
        cells = column(page, "recovered")
        values = [float(cell) for cell in cells if cell]
        assert values == sorted(values, reverse=direction == "descending")
        assert [bool(cell) for cell in cells] == [True] * 11 + [False]
        assert page.run(f"document.querySelector('#runs thead th:nth-child({index + 1})').ariaSort") == direction
    click(page, head.format(2))
    assert column(page, "state")[0] == "failed"


def test_details_open_and_close_by_the_keyboard(page: Browser, results: list[RunResult]) -> None:
    name = results[0].name
    page.run(f"document.querySelector('[aria-label=\"Details of {name}\"]').focus()")
    page.press("Enter")
    assert page.run("document.querySelector('dialog').open")
    assert page.run("document.querySelector('dialog h2').textContent") == name
    titles = page.run("[...document.querySelectorAll('dialog h3')].map(h => h.textContent)")
    assert titles[:5] == ["Options", "Metrics by stage", "Other metrics", "Events", "Configuration"]
    row = "[...document.querySelectorAll('dialog tr')].find(r => r.cells[0].textContent === 'probe/loss')"
    shown = page.run(f"[...{row}.cells].map(cell => cell.textContent)")
    stages = ("dense", "pruned", "recovered", "control")
    assert shown == ["probe/loss", *(f"{results[0].metrics[f'{stage}/probe/loss']:.4f}" for stage in stages)]
    page.press("Escape")
    assert not page.run("document.querySelector('dialog').open")


def test_details_of_a_failed_run_tell_what_went_wrong(page: Browser) -> None:
    page.run("openDetails(DATA.runs.find(run => run.state === 'failed'))")
    text = page.run("document.querySelector('dialog').textContent")
    assert "RuntimeError: <img src=x onerror=alert(1)> weights are not finite" in text
    assert 'in stage "event 1 of 1: recover"' in text
    assert "Traceback (most recent call last)" in text
    assert "pruning.ratio0.5" in text
    assert page.run("document.querySelectorAll('dialog img').length") == 0


def test_a_click_on_a_mark_opens_its_run(page: Browser) -> None:
    page.run("document.getElementById('cost').scrollIntoView({block: 'center'})")
    mark = "CHARTS.find(c => c.id === 'cost').place.querySelector('.scatterlayer .trace:nth-child(2) .point')"
    x, y = page.run(
        f"(() => {{ const b = {mark}.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] }})()"
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    page.wait("document.querySelector('dialog').open")
    assert page.run("document.querySelector('dialog h2').textContent").startswith("tiny-")


def test_a_drag_along_an_axis_keeps_the_runs_that_pass_there(page: Browser) -> None:
    page.run("document.getElementById('parallel').scrollIntoView({block: 'center'})")
    place = "CHARTS.find(c => c.id === 'parallel').place"
    left, top, right, bottom = page.run(
        f"""(() => {{
            const box = {place}.getBoundingClientRect(), {{xaxis, yaxis}} = {place}._fullLayout;
            const at = (x, y) => [box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(y)];
            return [...at(0.8, 1.05), ...at(1.2, 0.7)];
        }})()"""
    )
    mouse = {"button": "left", "clickCount": 1}
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=left, y=top, **mouse)
    for part in (0.3, 0.6, 1.0):
        x, y = left + part * (right - left), top + part * (bottom - top)
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1, **mouse)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=right, y=bottom, **mouse)
    page.wait("brushes.length === 1")
    lines = page.run(
        f"{place}.data.filter(t => t.mode === 'lines').map(t => [t.name, t.opacity > 0.5, t.x.length > 0])"
    )
    assert ["taylor", True, True] in lines  # the upper end of the estimators' axis
    assert ["l2", False, True] in lines
    assert ["l2", True, True] not in lines
    page.run(f"{place}.emit('plotly_deselect')")
    assert page.run("brushes.length") == 0


def test_the_measure_and_the_stage_change_the_charts(page: Browser) -> None:
    page.run(
        """for (const [index, value] of [[0, 'ppl/passages@128'], [1, 'pruned']]) {
            const box = document.querySelectorAll('#filters select')[index];
            box.value = value;
            box.dispatchEvent(new Event('change'));
        }
        drawing"""
    )
    axis = page.run("(a => [a.title.text, a.type])(CHARTS.find(c => c.id === 'cost').place.layout.yaxis)")
    assert axis == ["perplexity, passages@128, before recovery", "log"]
    assert "perplexity, passages@128" in page.run("document.querySelector('#runs caption').textContent")
    page.run("Object.assign(view, {measure: 'zeroshot/mean', stage: 'recovered'}); draw(); drawing")


def test_the_theme_follows_the_system_and_the_button(page: Browser) -> None:
    colours = "[getComputedStyle(document.body).backgroundColor, CHARTS[0].place.layout.paper_bgcolor]"
    scheme = "prefers-color-scheme"
    seen = []
    for value in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": scheme, "value": value}])
        page.wait(f"document.getElementById('theme').textContent === '{'Light' if value == 'dark' else 'Dark'}'")
        seen.append(page.run(f"drawing.then(() => {colours})"))
    assert seen[0] != seen[1]
    click(page, "#theme")
    assert page.run(colours) == seen[0]
    click(page, "#theme")
    assert page.run(colours) == seen[1]
    page.run("delete document.documentElement.dataset.theme")
    page.call("Emulation.setEmulatedMedia", features=[{"name": scheme, "value": "light"}])


def test_it_prints_light_and_no_wider_than_the_paper(page: Browser) -> None:
    page.run("document.documentElement.dataset.theme = 'dark'; draw(); drawing")
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("isDark()") is False
    widest = page.run("Math.max(...CHARTS.map(c => c.place.getBoundingClientRect().x + c.place._fullLayout.width))")
    assert widest <= 1040
    page.run("dispatchEvent(new Event('afterprint')); drawing")
    assert page.run("isDark()") is True
    assert page.run("CHARTS[0].place._fullLayout.height") == 380
    page.run("delete document.documentElement.dataset.theme; draw(); drawing")
    assert base64.b64decode(page.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    assert page.errors == []


def test_it_has_names_for_those_who_do_not_see_it(page: Browser) -> None:
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("document.querySelectorAll('h1').length") == 1
    labels = (
        "[...document.querySelectorAll('.plot')].map(plot => [plot.getAttribute('role'), plot.ariaLabel.length > 20])"
    )
    assert page.run(labels) == [["img", True]] * len(CHARTS)
    controls = "[...document.querySelectorAll('button, select, input')]"
    assert page.run(f"{controls}.filter(one => !(one.textContent || one.ariaLabel || one.labels?.length)).length") == 0
    assert page.run("[...document.querySelectorAll('#runs thead th')].every(th => th.scope === 'col')")
