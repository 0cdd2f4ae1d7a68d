"use strict";
// The bar at the top: which runs are shown, and the measure and stage that several charts use.

/** Facet name -> values that are shown; a facet that is not here shows all. */
const chosenValues = new Map();
let searched = "";

function placeFilters(changed) {
  const search = element("input", {
    type: "search",
    placeholder: "Search runs",
    "aria-label": "Search names, options and errors",
  });
  search.addEventListener("input", () => {
    searched = search.value.trim().toLowerCase();
    changed();
  });
  const reset = element("button", { type: "button", id: "reset" }, "Reset filters");
  reset.addEventListener("click", () => {
    chosenValues.clear();
    searched = search.value = "";
    document.querySelectorAll("#filters input[type=checkbox]").forEach((box) => (box.checked = true));
    changed();
  });
  const state = { name: "state", label: "state" };
  const facets = [...VARYING, state].map((facet) => facetFilter(facet, changed)).filter(Boolean);
  const count = element("output", { id: "count" });
  document.getElementById("filters").append(search, ...facets, ...viewChoices(changed), reset, count);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  closeOpenFilters();
}

const facetValue = (run, name) => (name === "state" ? run.state : run.facets[name]);

/** A list of boxes to tick; null when all runs agree. */
function facetFilter({ name, label }, changed) {
  const values = [...new Set(DATA.runs.map((run) => facetValue(run, name)))].sort(byValue);
  if (values.length < 2) return null;
  const boxes = values.map((value) => element("input", { type: "checkbox", value, checked: true }));
  const list = element(
    "fieldset",
    {},
    element("legend", {}, label),
    ...values.map((value, i) => element("label", {}, boxes[i], ` ${value}`)),
  );
  list.addEventListener("change", () => {
    chosenValues.set(name, new Set(boxes.filter((box) => box.checked).map((box) => box.value)));
    changed();
  });
  return element("details", { className: "filter", "data-facet": name }, element("summary", {}, label), list);
}

function viewChoices(changed) {
  const set = (name) => (value) => {
    view[name] = value;
    changed();
  };
  if (!DATA.measures.length) return [];
  return [
    selectBox(
      "Quality",
      DATA.measures.map(({ name, label }) => [name, label]),
      view.measure,
      set("measure"),
    ),
    selectBox("Stage", Object.entries(STAGES), view.stage, set("stage")),
  ];
}

/** Lists close when something else is clicked, and with Escape. */
function closeOpenFilters() {
  const close = (kept) =>
    document.querySelectorAll("details.filter[open]").forEach((list) => list !== kept && (list.open = false));
  document.addEventListener("click", (event) => close(event.target.closest("details.filter")));
  document.addEventListener("keydown", (event) => event.key === "Escape" && close());
}

/** Mark the runs that pass; say on the bar how many they are and which lists are narrowed. */
function applyFilters() {
  for (const run of DATA.runs) {
    const text = [run.name, run.study, run.arm, run.state, run.error, ...Object.values(run.facets)]
      .join(" ")
      .toLowerCase();
    run.shown =
      text.includes(searched) && [...chosenValues].every(([name, values]) => values.has(facetValue(run, name)));
  }
  for (const list of document.querySelectorAll("details.filter")) {
    const boxes = [...list.querySelectorAll("input")];
    list.classList.toggle(
      "narrowed",
      boxes.some((box) => !box.checked),
    );
  }
  const shown = DATA.runs.filter((run) => run.shown).length;
  document.getElementById("count").textContent = `${shown} of ${DATA.runs.length} runs`;
}
