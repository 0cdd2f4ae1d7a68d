"use strict";
// The table of all runs, sorted by a click on a column.

const STATE_ORDER = ["failed", "unreadable", "stopped", "running", "pending", "done"];

/** Columns: {label, read(run) -> what is sorted by, show(run) -> what stands in the cell}. */
function nameColumns() {
  const state = (run) => element("span", { className: `state ${run.state}` }, run.state);
  return [
    { label: "run", read: (run) => run.name, show: detailsButton },
    { label: "state", read: (run) => STATE_ORDER.indexOf(run.state), show: state },
    ...VARYING.map(({ name, label }) => ({ label, read: (run) => run.facets[name], show: (run) => run.facets[name] })),
  ];
}

/** The figures; of a run that is not done, what happened to it stands in their place. */
function figureColumns() {
  const stages = view.measure ? ["dense", "pruned", "recovered"] : [];
  const minutes = (run) => Object.values(run.timings).reduce((sum, value) => sum + value, 0) / 60;
  const columns = [
    ["reached", ratio, formatted],
    ...stages.map((stage) => [stage, (run) => metric(run, `${stage}/${view.measure}`), formatted]),
    ["instability", (run) => metric(run, "stability/instability_mean/tok_acc"), formatted],
    ["gain", (run) => metric(run, "generalization/gain/tok_acc"), formatted],
    ["parameters", (run) => metric(run, "recovered/params"), formatted],
    ["minutes", minutes, (value) => value.toFixed(1)],
  ];
  return columns.map(([label, known, text]) => {
    const read = (run) => (run.state === "done" ? known(run) : null);
    const show = (run) => (read(run) === null ? "" : text(read(run)));
    return { label, read, show, number: true };
  });
}

const whatHappened = (run) => run.error ?? (run.stage ? `in stage "${run.stage}"` : "");

function detailsButton(run) {
  const key = /-([0-9a-f]{8})$/.exec(run.name)?.[1] ?? run.name;
  const properties = { type: "button", className: "link", title: run.name, "aria-label": `Details of ${run.name}` };
  const button = element("button", properties, key);
  button.addEventListener("click", () => openDetails(run));
  return button;
}

const sorting = { column: null, down: false };

function drawTable() {
  const table = document.querySelector("#runs table");
  const [names, figures] = [nameColumns(), figureColumns()];
  const columns = [...names, ...figures];
  const runs = DATA.runs.filter((run) => run.shown);
  const by = columns.find((column) => column.label === sorting.column);
  if (by) runs.sort((a, b) => compareCells(by.read(a), by.read(b), sorting.down));
  const rows = runs.map((run) => tableRow(run, names, figures));
  const focused = document.activeElement.closest?.("#runs th")?.cellIndex;
  table.replaceChildren(
    element("caption", {}, tableCaption()),
    element("thead", {}, element("tr", {}, ...columns.map(headCell))),
    element("tbody", {}, ...rows),
  );
  if (focused !== undefined) table.rows[0].cells[focused]?.firstChild.focus();
}

function tableCaption() {
  const quality = measure().label ? `Dense, pruned, recovered: ${measure().label}. ` : "";
  const rest = "Instability and gain over the control: next-token accuracy.";
  return `${quality}${rest} A click on a column sorts by it; a click on a run opens its details.`;
}

function headCell(column) {
  const button = element("button", { type: "button" }, column.label);
  button.addEventListener("click", () => {
    sorting.down = sorting.column === column.label && !sorting.down;
    sorting.column = column.label;
    drawTable();
  });
  const sorted = sorting.column !== column.label ? "none" : sorting.down ? "descending" : "ascending";
  return element("th", { scope: "col", "aria-sort": sorted, className: column.number ? "number" : "" }, button);
}

function tableRow(run, [key, ...names], figures) {
  const cells = (columns) =>
    columns.map((column) => element("td", { className: column.number ? "number" : "" }, column.show(run)));
  const what = { colSpan: figures.length, className: "what", title: whatHappened(run) };
  const rest = run.state === "done" ? cells(figures) : [element("td", what, whatHappened(run))];
  return element("tr", {}, element("th", { scope: "row" }, key.show(run)), ...cells(names), ...rest);
}

/** What is missing stands last, whichever way is sorted. */
function compareCells(a, b, down) {
  const [noA, noB] = [a, b].map((value) => value === null || value === "" || value === "-");
  if (noA || noB) return noA - noB;
  return (down ? -1 : 1) * byValue(a, b);
}
