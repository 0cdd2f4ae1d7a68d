"use strict";

/** Metric -> what it is called, and how it is shown. Speeds stand once for each batch size: `decode_tok_s@8`. */
const COSTS = {
  params: ["parameters", (value) => value],
  macs: ["multiply-accumulates of one sequence", (value) => value],
  prefill_tok_s: ["prefill latency, ms per token", (value) => 1000 / value],
  decode_tok_s: ["decode latency, ms per token", (value) => 1000 / value],
  peak_bytes: ["peak memory, MiB", (value) => value / 2 ** 20],
  weights_bytes: ["weights, MiB", (value) => value / 2 ** 20],
};

addChart({
  id: "cost",
  title: "Cost and quality",
  note: "One mark a run; a star is a dense model. The line is the Pareto front: no run is both cheaper and better.",
  choices: [
    {
      name: "cost",
      label: "Cost",
      options: () =>
        Object.keys(COSTS)
          .flatMap((base) => measuredCosts(base))
          .map((name) => [name, costLabel(name)]),
    },
  ],
  draw(runs, chosen) {
    const points = runs.map((run) => costPoint(run, view.stage, chosen.cost)).filter(Boolean);
    if (!points.length) return { empty: "No shown run has both cost and quality." };
    const dense = denseCosts(runs, chosen.cost);
    const { label, lower } = measure();
    const front = paretoFront([...points, ...dense].map(({ x, y }) => ({ x, y, cost: x, loss: lower ? y : -y })));
    const data = [
      {
        type: "scatter",
        mode: "lines",
        name: "Pareto front",
        x: front.map((point) => point.x),
        y: front.map((point) => point.y),
        hoverinfo: "skip",
        line: { color: themeColour("soft"), width: 1.5, shape: "hv" },
      },
      ...groupBy(points, (point) => point.run.arm).map(([arm, marks]) => armMarks(arm, marks)),
      ...dense.map((point) =>
        denseMark(
          point,
          dense.map((one) => one.model),
        ),
      ),
    ];
    const xaxis = { title: axisTitle(costLabel(chosen.cost)) };
    return { data, layout: { xaxis, yaxis: qualityAxis(`${label}, ${STAGES[view.stage]}`) } };
  },
});

/** The names under which a cost was measured of recovered models. */
function measuredCosts(base) {
  const name = `recovered/${base}`;
  return metricNames((one) => one === name || one.startsWith(`${name}@`)).map((one) => one.slice("recovered/".length));
}

function costLabel(name) {
  const [base, size] = name.split("@");
  return size ? `${COSTS[base][0]}, batch of ${size}` : COSTS[base][0];
}

/** A run at one stage in the plane of cost and quality; null where one of the two is not known. */
function costPoint(run, stage, cost) {
  const [spent, gained] = [metric(run, `${stage}/${cost}`), metric(run, `${stage}/${view.measure}`)];
  if (spent === null || gained === null) return null;
  const [label, shown] = [costLabel(cost), COSTS[cost.split("@")[0]][1]];
  const lines = [`${label}: ${formatted(shown(spent))}`, `${measure().label}: ${formatted(gained)}`];
  return { run, x: shown(spent), y: gained, lines };
}

/** The dense models, each once: at the mean of what its runs measured, since speeds differ from run to run. */
function denseCosts(runs, cost) {
  return groupBy(runs, (run) => run.facets.model).flatMap(([model, members]) => {
    const points = members.map((run) => costPoint(run, "dense", cost)).filter(Boolean);
    if (!points.length) return [];
    const [x, y] = ["x", "y"].map((axis) => mean(points.map((point) => point[axis])));
    return [{ model, x, y, lines: [`${costLabel(cost)}: ${formatted(x)}`, `${measure().label}: ${formatted(y)}`] }];
  });
}

function denseMark({ model, x, y, lines }, models) {
  const name = denseLabel(model, models);
  return {
    type: "scatter",
    mode: "markers",
    name: plain(name),
    x: [x],
    y: [y],
    text: [hover([name, ...lines])],
    hovertemplate: "%{text}<extra></extra>",
    marker: { symbol: "star", size: 14, color: themeColour("ink") },
  };
}
