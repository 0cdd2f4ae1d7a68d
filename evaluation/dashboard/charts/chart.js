"use strict";
// What all charts share: where they stand, how they look, their own choices, what is said when nothing can be drawn.

/**
 * {id, title, note, shape (wide, tall or neither), choices: [{name, label, options()}], listeners: {event(chart, detail)},
 * draw(runs, chosen) -> {data, layout, note} or {empty: why}}
 */
const CHARTS = [];

/** The buttons are named one by one: among Plotly's own is one that sends the chart away. */
const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};

function addChart(chart) {
  CHARTS.push({ choices: [], chosen: {}, ...chart });
}

/** Put an empty section for a chart on the page. */
function placeChart(chart) {
  const controls = chart.choices.map(({ name, label, options }) => {
    const known = options();
    chart.chosen[name] = known[0]?.[0];
    const changed = (value) => {
      chart.chosen[name] = value;
      drawChart(chart);
    };
    return known.length ? selectBox(label, known, chart.chosen[name], changed) : "";
  });
  chart.place = element("div", { className: "plot", role: "img" });
  chart.caption = element("figcaption");
  const title = element("h2", { id: `${chart.id}-title` }, chart.title);
  const figure = element("figure", {}, chart.place, chart.caption);
  const head = element("div", { className: "head" }, title, ...controls);
  const attributes = { id: chart.id, className: chart.shape ?? "", "aria-labelledby": title.id };
  document.getElementById("charts").append(element("section", attributes, head, figure));
}

function drawChart(chart) {
  const runs = DONE.filter((run) => run.shown);
  const drawn = runs.length ? chart.draw(runs, chart.chosen) : { empty: "No finished run passes the filters." };
  const note = [chart.note, drawn.note].filter(Boolean).join(" ");
  chart.caption.textContent = drawn.empty ?? note;
  chart.place.setAttribute(
    "aria-label",
    `${chart.title}. ${drawn.empty ?? note} The figures are in the table of runs.`,
  );
  chart.place.classList.toggle("empty", "empty" in drawn);
  if (drawn.empty) {
    Plotly.purge(chart.place);
    return null;
  }
  return Plotly.react(chart.place, drawn.data, themed(drawn.layout), CONFIG).then(() => listen(chart));
}

/** Give a chart the width of its place at once; Plotly itself waits a little, and paper does not. */
function fitChart(chart) {
  if (chart.place.layout) Plotly.relayout(chart.place, { width: chart.place.clientWidth });
}

/** A click on a mark opens its run; a chart may listen for more. */
function listen(chart) {
  const open = (_, { points: [point] }) =>
    Number.isInteger(point.customdata) && openDetails(DATA.runs[point.customdata]);
  for (const [event, answer] of Object.entries({ plotly_click: open, ...chart.listeners })) {
    chart.place.removeAllListeners(event);
    chart.place.on(event, (detail) => answer(chart, detail));
  }
}

/** A layout in the colours of the theme. */
function themed({ xaxis = {}, yaxis = {}, height = isPrinting() ? 265 : 380, ...layout }) {
  const [ink, line, paper] = ["ink", "line", "card"].map(themeColour);
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  return {
    height,
    margin: { l: 56, r: 16, t: 30, b: 48 },
    paper_bgcolor: paper,
    plot_bgcolor: paper,
    font: { color: ink, size: 12, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink }, align: "left" },
    legend: {
      orientation: "h",
      yref: "container",
      y: 0,
      yanchor: "bottom",
      x: 0,
      maxheight: isPrinting() ? 1000 : 100,
    },
    hovermode: "closest",
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
    ...layout,
  };
}

/** Perplexities differ by powers. */
function qualityAxis(label) {
  return { title: axisTitle(label), type: measure().name.startsWith("ppl/") ? "log" : "linear" };
}

const axisTitle = (text) => ({ text: plain(text), standoff: 8 });

/** What stands beside a mark that is pointed at. */
const hover = (lines) => lines.map(plain).join("<br>");

/** Marks of the runs of one arm: [{run, x, y, lines}]. */
function armMarks(arm, points, mark = {}) {
  return {
    type: "scatter",
    mode: "markers",
    name: plain(arm),
    legendgroup: arm,
    x: points.map((point) => point.x),
    y: points.map((point) => point.y),
    customdata: points.map((point) => point.run.index),
    text: points.map((point) => hover([shortName(point.run), ...point.lines])),
    hovertemplate: "%{text}<extra></extra>",
    marker: {
      color: armColour(arm),
      symbol: armShape(arm),
      size: 10,
      line: { color: themeColour("card"), width: 1 },
      ...mark,
    },
  };
}
