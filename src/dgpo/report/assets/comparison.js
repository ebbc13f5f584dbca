// Learning curves of a comparison, with one colour per method and a band over seeds; and differences from the baseline.

const methods = data.methods;
state.methods = new Set(methods.keys());
state.every = false;
// beyond eight methods the colours repeat, with another stroke
const stroke = (at) => ({ color: colour(`method-${at % 8}`), dash: ["solid", ...DASHES][Math.floor(at / 8) % 5] });
const translucent = (hex, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;
const percents = (values) => values.map((value) => 100 * value);
const number = (value) => String(Number(value.toPrecision(3)));
const words = (value) => (100 * value).toFixed(1);

function learning(task) {
  return () => {
    const traces = [], told = [];
    for (const curve of data.curves.filter((one) => one.task === task)) {
      const { color, dash } = stroke(curve.method), name = methods[curve.method];
      const base = { type: "scatter", mode: "lines", x: curve.steps, visible: state.methods.has(curve.method) };
      const band = { ...base, hoverinfo: "skip", line: { width: 0 }, meta: { method: name, part: "band" } };
      traces.push({ ...band, y: percents(curve.low) });
      traces.push({ ...band, y: percents(curve.high), fill: "tonexty", fillcolor: translucent(color, 0.18) });
      for (const [seed, scores] of state.every ? curve.runs : []) {
        traces.push({ ...base, y: percents(scores), hoverinfo: "skip", opacity: 0.45, line: { color, width: 1, dash }, meta: { method: name, part: "run", seed } });
      }
      traces.push({ ...base, y: percents(curve.mean), mode: curve.steps.length > 1 ? "lines+markers" : "markers", name: short(name), line: { color, width: 2.5, dash }, marker: { color, size: 5 }, meta: { method: name, part: "mean" }, hovertemplate: "%{y:.1f} %" });
      told.push(`${name}: from ${words(curve.mean[0])} to ${words(curve.mean.at(-1))}`);
    }
    return {
      traces, label: `Score on ${task}, in percent, over updates. ${told.join(". ")}`,
      layout: { xaxis: { title: title("update") }, yaxis: { title: title("score, %"), rangemode: "tozero" } },
    };
  };
}
const learned = [...new Set(data.curves.map((curve) => curve.task))];
for (const [at, task] of learned.entries()) {
  figure($("curve-plots"), `plot-task-${at}`, task, `%, ${number(100 * data.confidence)} % intervals over seeds`, learning(task));
}

if (data.differences.length) {
  figure($("score-plots"), "plot-differences", `Final score minus that of ${data.baseline}`, `points, ${number(100 * data.confidence)} % intervals over seeds, each by itself`, () => {
    const rows = data.differences;
    return {
      traces: rows.map((row, at) => {
        const { color } = stroke(row.method);
        return {
          type: "scatter", mode: "markers", name: short(methods[row.method]), x: [100 * row.value], y: [at], meta: { method: methods[row.method] },
          error_x: { type: "data", symmetric: false, array: [100 * (row.high - row.value)], arrayminus: [100 * (row.value - row.low)], thickness: 2, width: 5, color },
          marker: { size: 10, color }, hovertemplate: "%{x:+.1f}",
        };
      }),
      label: `Difference of the final score from ${data.baseline}, in points. ${rows.map((row) => `${methods[row.method]}: ${words(row.value)}, from ${words(row.low)} to ${words(row.high)}`).join(". ")}`,
      layout: {
        hovermode: "closest", xaxis: { title: title("points"), zeroline: true, zerolinewidth: 2 },
        yaxis: { tickvals: rows.map((_, at) => at), ticktext: rows.map((row) => short(methods[row.method])), range: [rows.length - 0.5, -0.5], zeroline: false },
      },
    };
  });
  $("plot-differences").style.height = `${110 + 34 * data.differences.length}px`;
}

for (const [at, name] of methods.entries()) {
  const box = element("input", { type: "checkbox", value: String(at), checked: true });
  box.addEventListener("change", () => {
    if (box.checked) state.methods.add(at); else state.methods.delete(at);
    drawAll((id) => id.startsWith("plot-task"));
  });
  const line = element("span", { class: "stroke", "aria-hidden": "true" });
  strokes.push(() => {
    const { color, dash } = stroke(at);
    line.style.borderTopColor = color;
    line.style.borderTopStyle = { solid: "solid", dot: "dotted" }[dash] ?? "dashed";
  });
  $("methods").append(element("label", {}, box, line, name));
}
$("every-run").addEventListener("change", (event) => { state.every = event.target.checked; drawAll((id) => id.startsWith("plot-task")); });
