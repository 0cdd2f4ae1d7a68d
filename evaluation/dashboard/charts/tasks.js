"use strict";

addChart({
  id: "tasks",
  title: "Tasks",
  shape: "wide",
  note:
    "Bars: the mean over seeds, with the standard error that comes from the sampled items. Dashed: the dense model; " +
    "dotted: what guessing reaches.",
  choices: [
    {
      name: "ratio",
      label: "Ratio",
      options: () =>
        groupBy(DONE, (run) => run.facets.ratio)
          .map(([asked]) => [asked, asked])
          .reverse(),
    },
  ],
  draw(runs, chosen) {
    const members = runs.filter((run) => run.facets.ratio === chosen.ratio);
    const data = groupBy(members, (run) => run.arm).map(([arm, seeds]) => taskBars(arm, seeds));
    if (!DATA.tasks.length) return { empty: "No zero-shot task was measured." };
    if (!data.some((trace) => trace.y.some(Number.isFinite))) {
      return { empty: `No shown run of ratio ${chosen.ratio} has zero-shot tasks ${STAGES[view.stage]}.` };
    }
    data.push(...taskLines(members));
    const names = DATA.tasks.map((task) => `${task.name}<br>${task.metric}`);
    const range = [-0.5, names.length - 0.5];
    const xaxis = { tickvals: [...names.keys()], ticktext: names, range, showgrid: false, zeroline: false };
    const yaxis = { title: axisTitle(`accuracy ${STAGES[view.stage]}`), rangemode: "tozero" };
    return { data, layout: { barmode: "group", bargap: 0.2, xaxis, yaxis } };
  },
});

const taskMetric = (run, stage, task, name = task.metric) => metric(run, `${stage}/zeroshot/${task.name}/${name}`);

function taskBars(arm, seeds) {
  const known = (task, name) =>
    seeds.map((run) => taskMetric(run, view.stage, task, name)).filter((value) => value !== null);
  const bars = DATA.tasks.map((task) => {
    const [values, errors] = [known(task), known(task, "stderr")];
    return { value: finite(mean(values)), error: finite(mean(errors)), n: values.length };
  });
  const said = ({ value, error, n }) => `${formatted(value)} ± ${formatted(error)}, seeds: ${n}`;
  return {
    type: "bar",
    name: plain(arm),
    x: bars.map((_, i) => i),
    y: bars.map((bar) => bar.value),
    error_y: { array: bars.map((bar) => bar.error), color: themeColour("ink"), thickness: 1.2, width: 3 },
    text: bars.map((bar, i) => hover([arm, DATA.tasks[i].name, said(bar)])),
    textposition: "none",
    hovertemplate: "%{text}<extra></extra>",
    marker: {
      color: armColour(arm),
      pattern: {
        shape: armPattern(arm),
        fillmode: "overlay",
        fgcolor: themeColour("card"),
        fgopacity: 0.6,
        solidity: 0.2,
      },
    },
  };
}

/** Lines across the bars of each task: the dense models, and chance. */
function taskLines(runs) {
  const models = runs.map((run) => run.facets.model);
  const dense = groupBy(runs, (run) => run.facets.model).map(([model, members]) => {
    return taskLine(denseLabel(model, models), "dash", members, (run, task) => taskMetric(run, "dense", task));
  });
  return [...dense, taskLine("chance", "dot", runs, (run, task) => taskMetric(run, "dense", task, "chance"))];
}

function taskLine(name, dash, runs, read) {
  const values = DATA.tasks.map((task) => runs.map((run) => read(run, task)).find((value) => value !== null) ?? null);
  return {
    type: "scatter",
    mode: "lines",
    name: plain(name),
    x: values.flatMap((_, i) => [i - 0.42, i + 0.42, null]),
    y: values.flatMap((value) => [value, value, null]),
    hovertemplate: `${plain(name)}: %{y:.3f}<extra></extra>`,
    line: { color: themeColour("ink"), dash, width: 1.5 },
  };
}
