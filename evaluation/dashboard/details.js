"use strict";
// Everything that is known of one run, in a dialog.

function openDetails(run) {
  const dialog = document.querySelector("dialog");
  const close = element("button", { type: "button", className: "close" }, "Close");
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(
    element("div", { className: "head" }, element("h2", { id: "details-title" }, run.name), close),
    element("p", {}, element("span", { className: `state ${run.state}` }, run.state), ` ${whenAndWhere(run)}`),
    ...(run.error ? [element("pre", { className: "error" }, run.error)] : []),
    ...detailSections(run).flatMap(([title, content]) => (content ? [element("h3", {}, title), content] : [])),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
}

/** Pairs of a title and what stands below it; null where the run has nothing of the kind. */
function detailSections(run) {
  const figures = (table) => Object.entries(table).map(([name, value]) => [name, formatted(value)]);
  const { versions = {}, ...machine } = run.environment;
  return [
    ["Options", pairTable(Object.entries(run.choices))],
    ["Metrics by stage", stageTable(run.metrics)],
    ["Other metrics", pairTable(figures(run.metrics).filter(([name]) => !isStaged(name)))],
    ["Events", eventTable(run.events)],
    ["Configuration", pairTable(Object.entries(run.config))],
    ["Seconds", pairTable(figures(run.timings))],
    ["Environment", pairTable(Object.entries({ ...machine, ...versions }))],
    ["End of run.log", run.log ? element("pre", {}, run.log) : null],
  ];
}

function whenAndWhere(run) {
  const stage = run.stage && run.state !== "done" ? `in stage "${run.stage}"` : null;
  const times = [run.started && `started ${run.started}`, run.updated && `last change ${run.updated}`];
  return [stage, ...times, run.folder].filter(Boolean).join(" · ");
}

const DETAIL_STAGES = ["dense", "pruned", "recovered", "control"];
const isStaged = (name) => DETAIL_STAGES.includes(name.split("/")[0]);

/** One row a metric, one column a stage. */
function stageTable(metrics) {
  const names = [
    ...new Set(
      Object.keys(metrics)
        .filter(isStaged)
        .map((name) => name.slice(name.indexOf("/") + 1)),
    ),
  ];
  const rows = names.map((name) => [
    name,
    ...DETAIL_STAGES.map((stage) => formattedOrBlank(metrics, `${stage}/${name}`)),
  ]);
  return rows.length ? detailTable(["metric", ...DETAIL_STAGES], rows) : null;
}

/** One row a metric, one column an event. */
function eventTable(events) {
  const names = [...new Set(events.flatMap(Object.keys))].filter((name) => name !== "event/index");
  const rows = names.map((name) => [
    name.replace("event/", ""),
    ...events.map((event) => formattedOrBlank(event, name)),
  ]);
  return rows.length ? detailTable(["metric", ...events.map((_, index) => `event ${index + 1}`)], rows) : null;
}

const formattedOrBlank = (metrics, name) => (name in metrics ? formatted(metrics[name]) : "");

function pairTable(pairs) {
  const rows = pairs.map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
  return rows.length ? detailTable(null, rows) : null;
}

function detailTable(columns, rows) {
  const head =
    columns && element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name))));
  const body = rows.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell))),
  );
  return element("table", { className: columns ? "detail figures" : "detail" }, head, element("tbody", {}, ...body));
}
