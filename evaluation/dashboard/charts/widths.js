"use strict";

const WIDTHS = { mlp_channels: "MLP channels", query_heads: "query heads", kv_heads: "KV heads", experts: "experts" };

addChart({
  id: "widths",
  title: "Widths of the layers",
  shape: "wide",
  note: "One row a pruned model, one cell a layer that is left; 0 where a part is gone.",
  choices: [
    {
      name: "what",
      label: "Width",
      options: () => Object.entries(WIDTHS).filter(([name]) => DONE.some((run) => hasWidth(run, name))),
    },
  ],
  draw(runs, { what }) {
    const known = runs.filter((run) => ratio(run) !== 0 && hasWidth(run, what));
    if (!known.length) return { empty: "No shown run has a pruned model." };
    known.sort(
      (a, b) => ["arm", "ratio", "seed"].map((name) => byValue(rowKey(a, name), rowKey(b, name))).find(Boolean) ?? 0,
    );
    const named = known.length <= NAMED_ROWS;
    const yaxis = {
      ...(named ? { tickvals: [...known.keys()], ticktext: known.map((run) => plain(shortName(run))) } : {}),
      ...(named ? {} : { title: axisTitle("runs, by estimator and ratio"), showticklabels: false }),
      autorange: "reversed",
      showgrid: false,
      zeroline: false,
    };
    const xaxis = { title: axisTitle("layer"), showgrid: false, zeroline: false };
    return { data: [widthMap(known, what)], layout: { height: Math.min(110 + 20 * known.length, 900), xaxis, yaxis } };
  },
});

/** Above this number of rows their names would overlap; pointing at a row still tells its run. */
const NAMED_ROWS = 40;

const hasWidth = (run, name) => run.widths.some((layer) => layer[name] > 0);
const rowKey = (run, name) => run.facets[name] ?? run[name];

function widthMap(runs, what) {
  const layers = Math.max(...runs.map((run) => run.widths.length));
  const columns = [...Array(layers).keys()];
  return {
    type: "heatmap",
    x: columns,
    y: [...runs.keys()],
    z: runs.map((run) => columns.map((layer) => finite(run.widths[layer]?.[what]))),
    customdata: runs.map((run) => columns.map(() => run.index)),
    text: runs.map((run) => columns.map(() => plain(shortName(run)))),
    hovertemplate: `%{text}<br>layer %{x}: %{z} ${WIDTHS[what]}<extra></extra>`,
    hoverongaps: false,
    colorscale: "Cividis",
    xgap: 1,
    ygap: runs.length > NAMED_ROWS ? 0 : 1,
    colorbar: { title: { text: WIDTHS[what], side: "right" }, thickness: 12, outlinewidth: 0 },
  };
}
