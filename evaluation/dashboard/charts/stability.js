"use strict";

/** Below this number of runs a line would say nothing. */
const ENOUGH_RUNS = 8;

addChart({
  id: "stability",
  title: "Stability and generalization",
  note: "One mark a run, larger where more was removed.",
  choices: [
    { name: "x", label: "x", options: causes },
    { name: "y", label: "y", options: outcomes },
  ],
  draw(runs, { x, y }) {
    const known = runs.filter((run) => metric(run, x) !== null && metric(run, y) !== null);
    if (!known.length) return { empty: "No shown run has both: nothing was pruned, or no control was measured." };
    const data = groupBy(known, (run) => run.arm).map(([arm, members]) => {
      const said = (run) => [x, y].map((name) => `${pairLabel(name)} ${formatted(metric(run, name))}`);
      const points = members.map((run) => ({ run, x: metric(run, x), y: metric(run, y), lines: said(run) }));
      return armMarks(arm, points, { size: members.map((run) => 8 + 14 * (ratio(run) ?? 0)) });
    });
    const [xs, ys] = [x, y].map((name) => known.map((run) => metric(run, name)));
    const layout = { xaxis: { title: axisTitle(pairLabel(x)) }, yaxis: { title: axisTitle(pairLabel(y)) } };
    if (known.length < ENOUGH_RUNS) {
      return { data, layout, note: `Too few runs for a line: ${known.length}, and ${ENOUGH_RUNS} are needed.` };
    }
    if (new Set(xs).size === 1) return { data, layout, note: "No line: the runs do not differ in x." };
    const note = associationNote(
      xs,
      ys,
      known.map((run) => ratio(run) ?? 0),
    );
    return { data: [...data, fittedLine(xs, ys)], layout, note };
  },
});

function causes() {
  return pairMetrics(["stability/"], "stability/instability_mean/tok_acc");
}

/** What may follow from instability. */
function outcomes() {
  const groups = ["generalization/", "stability/recovered_frac/", "flatness/recovered/", "algorithmic_stability/"];
  return pairMetrics(groups, "generalization/gain/tok_acc");
}

/** [name, label] of the metrics under some prefixes, one of them first; ends of intervals are left out. */
function pairMetrics(prefixes, first) {
  const isOne = (name) => prefixes.some((prefix) => name.startsWith(prefix));
  const names = metricNames((name) => isOne(name) && !/_(low|high|stderr|se)$/.test(name));
  names.sort((a, b) => (b === first) - (a === first) || a.localeCompare(b));
  return names.map((name) => [name, pairLabel(name)]);
}

const PAIR_WORDS = {
  instability_mean: "instability, mean",
  instability_max: "instability, largest",
  instability_sum: "instability, sum",
  instability_last: "instability, last event",
  instability_per_ratio: "instability for everything removed",
  pct_mean: "stability %, mean",
  recovered_frac: "recovered fraction",
  final: "final",
  retained: "retained of the dense model",
  gain: "gain over the control",
  gain_match: "gain over random pruning",
  gap: "gap to training text",
  gap_out_of_domain: "gap of text out of domain",
  tok_acc: "token accuracy",
  loss: "loss (nats)",
  zeroshot: "zero-shot mean",
  zeroshot_cc: "zero-shot mean above chance",
  kl: "KL divergence (nats)",
};

const pairLabel = (name = "") =>
  name
    .replace(/^(stability|generalization)\//, "")
    .split("/")
    .map((word) => PAIR_WORDS[word] ?? word)
    .join(": ");

function fittedLine(xs, ys) {
  const { slope, intercept } = regressionLine(xs, ys);
  const ends = [Math.min(...xs), Math.max(...xs)];
  return {
    type: "scatter",
    mode: "lines",
    name: "least squares",
    x: ends,
    y: ends.map((x) => intercept + slope * x),
    hoverinfo: "skip",
    line: { color: themeColour("soft"), width: 1.5 },
  };
}

/** The pooled r alone misleads: both sides follow the ratio. */
function associationNote(xs, ys, ratios) {
  const r = pearson(xs, ys);
  const [low, high] = fisherInterval(r, xs.length).map((end) => end.toFixed(2));
  const partial = partialCorrelation(xs, ys, ratios);
  const rest = Number.isFinite(partial) ? ` with the ratio held constant ${partial.toFixed(2)},` : "";
  return (
    `${xs.length} runs: Pearson r ${r.toFixed(2)} (95 % interval ${low} to ${high}),${rest} Spearman ` +
    `${spearman(xs, ys).toFixed(2)}, slope ${formatted(regressionLine(xs, ys).slope)}.`
  );
}
