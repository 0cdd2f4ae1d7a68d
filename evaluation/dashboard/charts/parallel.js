"use strict";

/** Parts of axes that the reader has dragged over: {axis, low, high}. Only runs that pass through all are kept. */
const brushes = [];

// Drawn as a scatter chart: lines can be pointed at, clicked and printed, and need no WebGL.
addChart({
  id: "parallel",
  title: "Parallel coordinates",
  shape: "wide",
  note: "One line a run. Drag over a part of an axis to keep the runs that pass there; double-click to keep all again.",
  draw(runs) {
    const axes = parallelAxes(runs);
    const data = groupBy(runs, (run) => run.arm).flatMap(([arm, members]) => parallelLines(arm, members, axes));
    const axisLine = { color: themeColour("soft"), width: 1 };
    const layout = {
      shapes: axes.map((_, x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, layer: "below", line: axisLine })),
      xaxis: {
        tickvals: axes.map((_, i) => i),
        ticktext: axes.map((axis) => plain(axis.label).replace(/(.{8,}?[., ]+)(?=.)/g, "$1<br>")),
        ticklabeloverflow: "allow",
        range: [-0.3, axes.length - 0.7],
        side: "top",
        showgrid: false,
        zeroline: false,
      },
      yaxis: { visible: false, range: [-0.06, 1.06] },
      dragmode: "select",
      margin: { l: 16, r: 56, t: 72, b: 16 },
    };
    return { data: [...data, axisTicks(axes)], layout };
  },
  listeners: {
    plotly_selected(chart, event) {
      if (!event?.range) return;
      const [[left, right], [low, high]] = [event.range.x, event.range.y].map((ends) =>
        [...ends].sort((a, b) => a - b),
      );
      for (let axis = Math.ceil(left); axis <= right; axis++) brushes.push({ axis, low, high });
      drawChart(chart);
    },
    plotly_deselect(chart) {
      brushes.length = 0;
      drawChart(chart);
    },
  },
});

function parallelAxes(runs) {
  const facet = (name) => DATA.facets.find((one) => one.name === name);
  const words = new Set([facet("importance"), facet("schedule"), ...VARYING.filter(({ name }) => name !== "ratio")]);
  return [
    numberAxis("ratio reached", ratio, runs),
    ...[...words].map((one) => wordAxis(one, runs)),
    numberAxis("instability, token accuracy", (run) => metric(run, "stability/instability_mean/tok_acc"), runs),
    numberAxis(measure().label, quality, runs),
  ].filter((axis) => axis !== null);
}

/** An axis: {label, ticks: [{at, text}], at(run) -> 0 to 1 or null, said(run)}. Null when no run has the number. */
function numberAxis(label, read, runs) {
  const values = runs.map(read).filter((value) => value !== null);
  if (!values.length) return null;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const at = (value) => (value === null ? null : high > low ? (value - low) / (high - low) : 0.5);
  const marks = high > low ? [0, 0.25, 0.5, 0.75, 1].map((part) => low + part * (high - low)) : [low];
  const ticks = marks.map((value) => ({ at: at(value), text: String(+value.toPrecision(3)) }));
  return { label, ticks, at: (run) => at(read(run)), said: (run) => formatted(read(run)) };
}

function wordAxis({ name, label }, runs) {
  const words = [...new Set(runs.map((run) => run.facets[name]))].sort(byValue);
  const at = (word) => (words.length > 1 ? words.indexOf(word) / (words.length - 1) : 0.5);
  const ticks = words.map((word) => ({ at: at(word), text: word }));
  return { label, ticks, at: (run) => at(run.facets[name]), said: (run) => run.facets[name] };
}

/** The lines of one arm, as one trace of those that are kept and one of the others. */
function parallelLines(arm, runs, axes) {
  const lines = runs.map((run) => ({ run, at: axes.map((axis) => axis.at(run)) }));
  const isKept = ({ at }) => brushes.every(({ axis, low, high }) => at[axis] >= low && at[axis] <= high);
  return [true, false].map((kept) => {
    const shown = lines.filter((line) => isKept(line) === kept);
    const points = shown.flatMap(({ run, at }) => {
      const text = hover(axes.map((axis) => `${axis.label}: ${axis.said(run)}`));
      return [...at.map((y, x) => ({ x, y, text, run: run.index })), {}];
    });
    return {
      type: "scatter",
      mode: "lines",
      name: plain(arm),
      legendgroup: arm,
      showlegend: kept,
      x: points.map((point) => point.x),
      y: points.map((point) => point.y),
      customdata: points.map((point) => point.run),
      text: points.map((point) => point.text),
      hovertemplate: "%{text}<extra></extra>",
      line: { color: armColour(arm), dash: armDash(arm), width: 1.6 },
      opacity: kept ? 0.75 : 0.06,
    };
  });
}

function axisTicks(axes) {
  const ticks = axes.flatMap((axis, x) => axis.ticks.map((tick) => ({ ...tick, x })));
  return {
    type: "scatter",
    mode: "text",
    x: ticks.map((tick) => tick.x),
    y: ticks.map((tick) => tick.at),
    text: ticks.map((tick) => `${plain(tick.text)} `),
    textposition: "middle left",
    textfont: {
      size: 11,
      color: themeColour("ink"),
      shadow: `0 0 3px ${themeColour("card")}, 0 0 3px ${themeColour("card")}`,
    },
    hoverinfo: "skip",
    showlegend: false,
    cliponaxis: false,
  };
}
