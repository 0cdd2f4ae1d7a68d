"use strict";

addChart({
  id: "ratio",
  title: "Ratio and quality",
  note:
    "Means over seeds, with one standard deviation where there are two seeds or more. Filled marks and solid lines: " +
    "after recovery; open marks and dotted lines: directly after the last cut.",
  draw(runs) {
    const { label } = measure();
    const data = groupBy(runs, (run) => run.arm)
      .flatMap(([arm, members]) => Object.keys(STAGES).map((stage) => ratioCurve(arm, members, stage)))
      .filter((curve) => curve.x.length);
    if (!data.length) return { empty: `No shown run has ${label || "a measure of quality"}.` };
    const ratios = runs.map(ratio).filter((value) => value !== null);
    data.push(...denseLines(runs, [0, Math.max(...ratios) * 1.03 || 1]));
    const xaxis = { title: axisTitle("ratio removed, reached"), rangemode: "tozero" };
    return { data, layout: { xaxis, yaxis: qualityAxis(label) } };
  },
});

/** One line over the ratios asked for; each point is the mean over the seeds of an arm at one of them. */
function ratioCurve(arm, members, stage) {
  const points = [];
  for (const [asked, seeds] of groupBy(members, (run) => run.facets.ratio)) {
    const known = seeds.filter((run) => ratio(run) !== null && metric(run, `${stage}/${view.measure}`) !== null);
    if (!known.length) continue;
    const values = known.map((run) => metric(run, `${stage}/${view.measure}`));
    const spread = values.length > 1 ? deviation(values) : null;
    const text = hover([
      `${arm}, ${STAGES[stage]}`,
      `ratio ${asked} asked, ${formatted(mean(known.map(ratio)))} reached`,
      formatted(mean(values)) + (spread === null ? "" : ` ± ${formatted(spread)} over ${values.length} seeds`),
    ]);
    const run = known.length === 1 ? known[0].index : null;
    points.push({ x: mean(known.map(ratio)), y: mean(values), spread, text, run });
  }
  const after = stage === "recovered";
  const colour = armColour(arm);
  return {
    type: "scatter",
    mode: "lines+markers",
    name: plain(arm),
    legendgroup: arm,
    showlegend: after,
    x: points.map((point) => point.x),
    y: points.map((point) => point.y),
    text: points.map((point) => point.text),
    customdata: points.map((point) => point.run),
    hovertemplate: "%{text}<extra></extra>",
    error_y: { array: points.map((point) => point.spread), thickness: 1.2 },
    line: { color: colour, dash: after ? "solid" : "dot", width: after ? 2 : 1.3 },
    marker: { color: colour, size: 9, symbol: armShape(arm) + (after ? "" : "-open") },
  };
}

function denseLines(runs, x) {
  const all = denseValues(runs, view.measure);
  return all.map(({ model, value }) => {
    const name = plain(
      denseLabel(
        model,
        all.map((one) => one.model),
      ),
    );
    return {
      type: "scatter",
      mode: "lines",
      name,
      x,
      y: [value, value],
      hovertemplate: `${name}: ${formatted(value)}<extra></extra>`,
      line: { color: themeColour("ink"), dash: "dash", width: 1.3 },
    };
  });
}
