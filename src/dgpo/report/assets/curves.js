// Curves over the run.

function smoothed(y) {
  const half = Math.max(1, Math.round(y.length * 0.03));
  return y.map((value, i) => {
    if (value === null) return null;
    // as many on either side, so that the ends are not drawn towards the middle
    const reach = Math.min(half, i, y.length - 1 - i);
    const near = y.slice(i - reach, i + reach + 1).filter((v) => v !== null);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}
const number = (v) => (v === null || v === undefined ? "unknown" : String(Number(v.toPrecision(3))));
function traced(line, i, dash, name, legend) {
  const smooth = state.smooth && line.y.length > 20;
  const base = { x: line.x, type: "scatter", mode: line.x.length > 1 ? "lines" : "markers", visible: state.shown.has(i), meta: { run: i } };
  const made = [];
  if (smooth) made.push({ ...base, y: line.y, opacity: 0.28, line: { color: runColour(i), width: 1, dash }, hoverinfo: "skip", showlegend: false });
  made.push({ ...base, y: smooth ? smoothed(line.y) : line.y, name, line: { color: runColour(i), width: 2, dash }, showlegend: legend });
  return made;
}
function resumes() {
  const steps = [...state.shown].flatMap((i) => runs[i].resumed.map((x) => [x, i]));
  return steps.map(([x, i]) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: runColour(i), width: 1, dash: "dot" } }));
}
function curve(name) {
  const chart = data.charts[name];
  return () => {
    const used = chart.lines.filter((words) => runs.some((run) => run.charts[name].some((line) => line.name === words)));
    const traces = [], words = [];
    for (const [i, run] of runs.entries()) {
      for (const line of run.charts[name]) {
        const at = used.indexOf(line.name);
        const full = used.length > 1 ? (runs.length > 1 ? `${line.name}, ${short(run.label)}` : line.name) : short(run.label);
        traces.push(...traced(line, i, at ? DASHES[at - 1] : "solid", full, used.length > 1));
        words.push(`${run.label}, ${line.name}: from ${number(line.y[0])} to ${number(line.y.at(-1))}`);
      }
    }
    return {
      traces, label: `${chart.title} (${chart.unit}) over updates. ${words.join(". ")}`,
      layout: { showlegend: used.length > 1, shapes: resumes(), xaxis: { title: title("update") }, yaxis: { rangemode: "tozero", tickformat: "~g" } },
    };
  };
}
for (const [name, chart] of Object.entries(data.charts)) {
  const drawn = new Set(runs.flatMap((run) => run.charts[name].map((line) => line.name)));
  const only = chart.lines.length > 1 && drawn.size === 1 ? `${[...drawn][0]}, ` : "";
  if (drawn.size) figure($("curve-plots"), `plot-${name}`, chart.title, only + chart.unit, curve(name));
}
if (!$("curve-plots").children.length) $("curve-plots").append(element("p", { class: "empty" }, "The runs have no metrics.jsonl, so there are no curves."));
