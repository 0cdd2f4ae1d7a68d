"use strict";
// The runs, how they are grouped, and what a reader has chosen to see of them.

const DATA = JSON.parse(document.getElementById("data").textContent);
DATA.runs.forEach((run, index) => Object.assign(run, { index, shown: true }));

const DONE = DATA.runs.filter((run) => run.state === "done");
const ARMS = [...new Set(DONE.map((run) => run.arm))].sort();
const STAGES = { recovered: "after recovery", pruned: "before recovery" };

const finite = (value) => (Number.isFinite(value) ? value : null);
const metric = (run, name) => finite(run.metrics[name]);

/** What acts on several charts: the measure of quality and the stage it is taken at. */
const view = { measure: widestMeasure(), stage: "recovered" };

/** The first of the measures that most runs have. */
function widestMeasure() {
  const runs = (name) => DONE.filter((run) => metric(run, `recovered/${name}`) !== null).length;
  return [...DATA.measures].sort((a, b) => runs(b.name) - runs(a.name))[0]?.name;
}

const quality = (run) => metric(run, `${view.stage}/${view.measure}`);
const measure = () => DATA.measures.find((one) => one.name === view.measure) ?? { name: "", label: "", lower: false };

/** Fraction removed; a run that was asked for none has reached it. */
const ratio = (run) => metric(run, "pruned/ratio_reached") ?? (Number(run.facets.ratio) === 0 ? 0 : null);

/** What a mark in a chart is called where it is pointed at. */
const shortName = (run) => `${run.arm}, ratio ${run.facets.ratio}, seed ${run.facets.seed}`;

/** Facets in which the runs differ. */
const VARYING = DATA.facets.filter((facet) => facet.values.length > 1);

/** Numbers by size, then words by the alphabet. */
function byValue(a, b) {
  const areNumbers = [a, b].every((value) => value !== "" && Number.isFinite(+value));
  return areNumbers ? a - b : String(a).localeCompare(String(b));
}

function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) {
    if (!groups.has(key(item))) groups.set(key(item), []);
    groups.get(key(item)).push(item);
  }
  return [...groups].sort(([a], [b]) => byValue(a, b));
}

/** The different values of the dense models of some runs: [{model, value}]. Equal to 4 digits is equal. */
function denseValues(runs, name) {
  const found = new Map();
  for (const run of runs) {
    const value = metric(run, `dense/${name}`);
    if (value !== null) found.set(`${run.facets.model} ${value.toPrecision(4)}`, { model: run.facets.model, value });
  }
  return [...found.values()];
}

/** What a dense model is called beside the others that are shown. */
function denseLabel(model, models) {
  return new Set(models).size > 1 ? `dense ${model}` : "dense model";
}

/** Whether any finished run has a number there. */
const present = (name) => DONE.some((run) => metric(run, name) !== null);

/** All metric names of finished runs that pass a test and have a number somewhere. */
function metricNames(test) {
  const names = new Set(DONE.flatMap((run) => Object.keys(run.metrics)));
  return [...names].filter((name) => test(name) && present(name));
}

/** A figure as it is read: 4 decimals below 10, 2 below 1000, then none. */
function formatted(value) {
  if (!Number.isFinite(value)) return "-";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return size >= 10 ? value.toFixed(2) : size >= 0.001 ? value.toFixed(4) : value.toPrecision(2);
}
