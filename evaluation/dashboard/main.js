"use strict";
// Puts the page together, and draws it again when a filter or the theme changes.

function describeStudy() {
  const counts = groupBy(DATA.runs, (run) => run.state).map(([state, runs]) => `${runs.length} ${state}`);
  const said = DATA.runs.length
    ? `${DATA.runs.length} ${DATA.runs.length === 1 ? "run" : "runs"}: ${counts.join(", ")}`
    : "No runs yet";
  document.getElementById("summary").textContent = `${said} · made ${DATA.made}`;
  const same = DATA.facets.filter(
    (facet) => !VARYING.includes(facet) && (DATA.runs[0]?.facets[facet.name] ?? "-") !== "-",
  );
  const values = same.map((facet) => `${facet.label} ${DATA.runs[0].facets[facet.name]}`);
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

/** Settled when all charts show what was chosen last. */
let drawing = Promise.resolve();
let turn = 0;

function draw() {
  drawing = drawCharts(beginTurn());
}

/** Bring everything but the charts up to date, and stop the drawing that goes on. */
function beginTurn() {
  themeColours.clear();
  applyFilters();
  drawTable();
  turn += 1;
  return turn;
}

/** Draw one chart after the other, so that the page answers in between; a newer turn takes over. */
async function drawCharts(mine) {
  for (const chart of placedCharts()) {
    await new Promise((resume) => setTimeout(resume));
    if (mine !== turn) return;
    await drawChart(chart);
  }
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
