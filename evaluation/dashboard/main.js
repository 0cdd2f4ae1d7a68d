"use strict";
// Puts the page together, and draws it again when a filter or the theme changes.

function describeStudy() {
  const counts = groupBy(DATA.runs, (run) => run.state).map(([state, runs]) => `${runs.length} ${state}`);
  const said = DATA.runs.length
    ? `${DATA.runs.length} ${DATA.runs.length === 1 ? "run" : "runs"}: ${counts.join(", ")}`
    : "No runs yet";
  document.getElementById("summary").textContent = `${said} · made ${DATA.made}`;
  const same = DATA.facets.filter(({ values }) => values.length === 1 && values[0] !== "-");
  const values = same.map((facet) => `${facet.label} ${facet.values[0]}`);
  document.getElementById("common").textContent = values.length ? `The same in all: ${values.join(" · ")}` : "";
}

function placeSections() {
  if (DONE.length) CHARTS.forEach(placeChart);
  else
    document
      .getElementById("charts")
      .append(element("p", {}, "No run has finished yet: charts appear with the first result."));
  const links = [...document.querySelectorAll("main section")].map((section) =>
    element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent),
  );
  document.querySelector("nav").append(...links);
}

/** Settled when all charts that can be seen show what was chosen last. */
let drawing = Promise.resolve();
let turn = 0;

/** How far from what is seen a chart is drawn ahead. */
const AHEAD = "100px";

function draw() {
  const mine = beginTurn();
  drawing = placedCharts().length ? new Promise((resolve) => drawNear(mine, resolve)) : Promise.resolve();
}

/** Bring everything but the charts up to date, and stop the drawing that goes on. */
function beginTurn() {
  themeColours.clear();
  applyFilters();
  drawTable();
  stopDrawing();
  turn += 1;
  return turn;
}

/** Plotly, the largest part of the page, stands at its end: the table is there before it is read. */
const library = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));

/** Settles the drawing that goes on. */
let stopDrawing = () => {};

/** Draw the charts that can be seen, one after the other so that the page answers in between, and others when they can. */
function drawNear(mine, seen) {
  const charts = new Map(placedCharts().map((chart) => [chart.place.closest("section"), chart]));
  const drawSeen = async (entries, observer) => {
    await library;
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      await new Promise((resume) => setTimeout(resume));
      if (mine !== turn) break;
      observer.unobserve(target);
      await drawChart(charts.get(target));
    }
    seen();
  };
  const near = new IntersectionObserver(drawSeen, { rootMargin: AHEAD });
  stopDrawing = () => {
    near.disconnect();
    seen();
  };
  charts.forEach((_, section) => near.observe(section));
}

const placedCharts = () => CHARTS.filter((chart) => chart.place);

/** On paper: light, and as wide as the paper, whatever the screen was. The paper does not wait for turns. */
function watchPrinting() {
  const root = document.documentElement;
  let theme;
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    Object.assign(root.dataset, { theme: "light", printing: "true" });
    beginTurn();
    placedCharts().forEach(drawChart);
    placedCharts().forEach(fitChart);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.printing;
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    draw();
  });
}

describeStudy();
placeFilters(draw);
placeSections();
watchTheme(draw);
watchPrinting();
drawing.then(() => (document.documentElement.dataset.ready = "true"));
