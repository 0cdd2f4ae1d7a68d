"use strict";
// Correlations over the runs: of everything with one measure of stability, and within each rate of pruning.

/** How a correlation is taken: {label, symbol, colour, of(xs, ys, runs) -> [r, number of figures held constant]}. */
const KINDS = [
  { label: "all runs", symbol: "circle", colour: 0, of: (xs, ys) => [pearson(xs, ys), 0] },
  { label: "inside arms (means removed)", symbol: "square", colour: 1, of: insideArms },
  {
    label: "ratio held constant",
    symbol: "triangle-up",
    colour: 2,
    of: (xs, ys, runs) => [partialCorrelation(xs, ys, runs.map(knownRatio)), 1],
  },
];

addChart({
  id: "correlations",
  title: "Correlations",
  shape: "tall",
  note: `Pearson's r with Fisher's 95 % interval, where ${ENOUGH_RUNS} runs or more have both figures.`,
  choices: [
    { name: "x", label: "with", options: causes },
    { name: "y", label: "of", options: () => [["", "everything"], ...byRateOptions()] },
  ],
  draw: (runs, { x, y }) => (y ? drawRates(runs, x, y) : drawForest(runs, x)),
});

const byRateOptions = () => outcomes().map(([name, label]) => [name, `${label}, by rate of pruning`]);

/** A row for every figure, with a mark for every kind of correlation. */
function drawForest(runs, x) {
  const rows = outcomes()
    .map(([name, label]) => ({ name, label, known: withBoth(runs, x, name) }))
    .filter(({ known, name }) => known.length >= ENOUGH_RUNS && name !== x)
    .reverse();
  if (!rows.length) return { empty: `Too few runs: ${ENOUGH_RUNS} that have both figures are needed.` };
  const data = KINDS.map((kind, place) => forestMarks(kind, rows, x, 0.2 * (1 - place)));
  const yaxis = { tickvals: [...rows.keys()], ticktext: rows.map(({ label }) => plain(label)), zeroline: false };
  const title = axisTitle(`r with ${pairLabel(x)}`);
  const xaxis = { title, range: [-1.04, 1.04], zerolinecolor: themeColour("soft") };
  return { data, layout: { xaxis, yaxis, height: Math.max(380, 150 + 40 * rows.length) } };
}

/** The correlation of one figure over the runs that remove as much per event, by what they remove. */
function drawRates(runs, x, y) {
  const known = withBoth(runs, x, y).filter((run) => run.events.length);
  const rows = groupBy(known, rate).filter(([, members]) => members.length >= ENOUGH_RUNS);
  if (!rows.length) return { empty: `Too few runs: ${ENOUGH_RUNS} at one rate are needed.` };
  const found = rows.map(([, members]) => correlated(KINDS[0], members, x, y));
  const xaxis = { title: axisTitle("percent removed per event"), type: "log", tickvals: rows.map(([at]) => at) };
  xaxis.ticktext = xaxis.tickvals.map(String);
  const trace = {
    type: "scatter",
    mode: "lines+markers",
    x: xaxis.tickvals,
    y: found.map(({ r }) => finite(r)),
    text: rows.map(([at, members], i) => hover([`${at} % per event, ${members.length} runs`, inWords(found[i])])),
    hovertemplate: "%{text}<extra></extra>",
    error_y: whiskers(found),
    line: { color: kindColour(0) },
  };
  const yaxis = { title: axisTitle(`r of ${pairLabel(y)}`), range: [-1.05, 1.05], zerolinecolor: themeColour("soft") };
  return { data: [trace], layout: { xaxis, yaxis } };
}

const withBoth = (runs, x, y) => runs.filter((run) => metric(run, x) !== null && metric(run, y) !== null);

const knownRatio = (run) => ratio(run) ?? 0;

/** Percent removed per event, to 0.01. */
const rate = (run) => Math.round((10000 * run.facets.ratio) / run.events.length) / 100;

/** Arms are told apart by ratio too, so that only repetitions are left. */
function insideArms(xs, ys, runs) {
  const arms = runs.map((run) => `${run.arm} ${run.facets.ratio}`);
  return [pearson(...[xs, ys].map((values) => withoutGroupMeans(values, arms))), new Set(arms).size - 1];
}

/** r of some runs, and its interval. */
function correlated(kind, runs, x, y) {
  const [xs, ys] = [x, y].map((name) => runs.map((run) => metric(run, name)));
  const [r, held] = kind.of(xs, ys, runs);
  return { r, ends: fisherInterval(r, runs.length, held) };
}

/** One way to correlate, for every row, a little above or below the row's middle. */
function forestMarks(kind, rows, x, above) {
  const found = rows.map(({ name, known }) => correlated(kind, known, x, name));
  return {
    type: "scatter",
    mode: "markers",
    name: kind.label,
    x: found.map(({ r }) => finite(r)),
    y: rows.map((_, row) => row + above),
    text: rows.map(({ label, known }, i) => hover([label, `${kind.label}, ${known.length} runs`, inWords(found[i])])),
    hovertemplate: "%{text}<extra></extra>",
    error_x: whiskers(found),
    marker: { color: kindColour(kind.colour), symbol: kind.symbol, size: 9 },
  };
}

const kindColour = (index) => COLOURS[isDark() ? "dark" : "light"][index];

/** Ends of intervals as Plotly takes them: distances from the mark. */
function whiskers(found) {
  const distance = (end) => found.map(({ r, ends }) => (Number.isFinite(ends[end]) ? Math.abs(ends[end] - r) : null));
  return { type: "data", symmetric: false, array: distance(1), arrayminus: distance(0), thickness: 1.4, width: 3 };
}

const inWords = ({ r, ends }) =>
  Number.isFinite(r) ? `r ${r.toFixed(2)} (${ends.map((end) => formatted(end)).join(" to ")})` : "no r";
