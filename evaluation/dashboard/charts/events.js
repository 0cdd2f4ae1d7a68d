"use strict";

/** Above this number of runs the corners are not marked: thousands of marks hide the lines, and draw slowly. */
const MARKED_RUNS = 40;

const EVENT_MEASURES = { tok_acc: "token accuracy", loss: "loss, nats per token", zeroshot: "zero-shot mean" };

addChart({
  id: "events",
  title: "Pruning events",
  note:
    "One line a run: before each cut (circle), directly after it (triangle down), after the recovery that follows, " +
    "where there is one (triangle up).",
  choices: [
    {
      name: "measure",
      label: "Measure",
      options: () => Object.entries(EVENT_MEASURES).filter(([name]) => DONE.some((run) => isProbed(run, name))),
    },
  ],
  draw(runs, chosen) {
    const known = runs.filter((run) => isProbed(run, chosen.measure));
    if (!known.length) return { empty: "No shown run has pruning events." };
    const data = groupBy(known, (run) => run.arm).map(([arm, members]) =>
      sawTeeth(arm, members, chosen.measure, known.length <= MARKED_RUNS),
    );
    const longest = Math.max(...known.map((run) => run.events.length));
    const xaxis = { title: axisTitle("event"), tickvals: [...Array(longest + 1).keys()], range: [-0.1, longest + 0.1] };
    xaxis.ticktext = xaxis.tickvals.map((index) => (index < longest ? `cut ${index + 1}` : "end"));
    return { data, layout: { xaxis, yaxis: { title: axisTitle(EVENT_MEASURES[chosen.measure]) } } };
  },
});

const isProbed = (run, name) => run.events.some((event) => Number.isFinite(event[`event/${name}/pre`]));

/** The lines of one arm, as one trace: two hundred traces would draw slowly. */
function sawTeeth(arm, runs, name, marked) {
  const ofRun = (run) => run.events.flatMap((event, index) => eventPoints(run, event, index, name));
  const points = runs.flatMap((run) => [...ofRun(run), {}]);
  return {
    type: "scatter",
    mode: marked ? "lines+markers" : "lines",
    name: plain(arm),
    x: points.map((point) => point.x),
    y: points.map((point) => point.y),
    text: points.map((point) => point.text),
    customdata: points.map((point) => point.run),
    hovertemplate: "%{text}<extra></extra>",
    line: { color: armColour(arm), dash: armDash(arm), width: 1.4 },
    marker: { color: armColour(arm), size: 7, symbol: points.map((point) => point.symbol) },
    opacity: 0.8,
  };
}

/** Three points: the cut is a vertical line, the recovery leads to the next one. */
function eventPoints(run, event, index, name) {
  const moments = [
    ["pre", index, "circle", "before the cut"],
    ["post", index, "triangle-down", "after the cut"],
    ["rec", index + 1, "triangle-up", "after recovery"],
  ];
  return moments.map(([when, x, symbol, said]) => {
    const value = event[`event/${name}/${when}`];
    const text = hover([
      shortName(run),
      `event ${index + 1} of ${run.events.length}, ${said}`,
      `${EVENT_MEASURES[name]} ${formatted(value)}`,
      `${formatted(event["event/ratio_reached"])} removed`,
    ]);
    return { x, y: finite(value), symbol, text, run: run.index };
  });
}
