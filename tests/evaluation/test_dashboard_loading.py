"""What the dashboard does first in headless Chromium, and what only when it is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.dashboard import write_dashboard
from evaluation.dashboard.page import KINDS
from tests.evaluation.browser import Browser
from tests.evaluation.studies import small_study

DRAWN = "placedCharts().filter(chart => chart.place.querySelector('.main-svg')).map(chart => chart.id)"
WATCH_TABLE = """
new MutationObserver(() => {
  if (!window.atTable && document.querySelector('#runs tbody tr')) window.atTable = typeof Plotly;
}).observe(document, { childList: true, subtree: true });
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    small_study(folder)
    return write_dashboard(folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile"), height=768) as opened:
        opened.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH_TABLE)
        yield opened


@pytest.fixture
def page(browser: Browser, study: Path) -> Browser:
    browser.open(study)
    return browser


def test_the_table_is_there_before_the_library_is_read(page: Browser) -> None:
    assert page.run("atTable") == "undefined"
    assert page.run("typeof Plotly") == "object"


def test_the_library_makes_only_the_kinds_of_traces_that_charts_draw(page: Browser) -> None:
    made = page.run("Object.keys(Plotly.PlotSchema.get().traces)")
    assert set(made) == {"scatter", *KINDS}
    page.run("placedCharts().forEach(drawChart)")
    assert set(page.run("CHARTS.flatMap(chart => chart.place._fullData.map(trace => trace.type))")) == set(made)


def test_charts_are_drawn_when_they_come_near(page: Browser) -> None:
    drawn = page.run(DRAWN)
    assert drawn[:2] == ["ratio", "cost"]
    assert "widths" not in drawn
    page.run("document.querySelector(\"[data-facet=importance] input[value='l2']\").click(); drawing")
    assert page.run(DRAWN) == drawn
    page.run("document.getElementById('widths').scrollIntoView()")
    page.wait(f"{DRAWN}.includes('widths')")
    assert page.run("CHARTS.find(chart => chart.id === 'widths').place.data[0].y.length") == 6  # those that are shown
    assert page.errors == []


def test_a_chart_that_is_out_of_sight_follows_a_filter_when_it_is_seen_again(page: Browser) -> None:
    rows = "CHARTS.find(chart => chart.id === 'widths').place.data?.[0].y.length"
    page.run("document.getElementById('widths').scrollIntoView()")
    page.wait(f"{rows} === 11")
    page.run("scrollTo(0, 0)")
    page.run("document.querySelector(\"[data-facet=importance] input[value='l2']\").click(); drawing")
    assert page.run(rows) == 11
    page.run("document.getElementById('widths').scrollIntoView()")
    page.wait(f"{rows} === 6")


def test_paper_gets_all_charts(page: Browser) -> None:
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run(DRAWN) == page.run("CHARTS.map(chart => chart.id)")
    page.run("dispatchEvent(new Event('afterprint')); drawing")
    assert page.errors == []


def test_a_drawing_that_another_takes_over_from_is_settled(page: Browser) -> None:
    assert (
        page.run("(() => { draw(); const first = drawing; draw(); return first.then(() => 'settled') })()") == "settled"
    )
    assert page.run("drawing.then(() => 'settled')") == "settled"
    assert page.run(DRAWN)[:2] == ["ratio", "cost"]
