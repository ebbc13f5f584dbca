// Results of evaluations, after and during training.

if (data.evaluations.length) {
  const rows = data.evaluations, of = [...new Set(rows.map((row) => row.label))];
  const places = [...new Set(rows.map((row) => `${row.benchmark}, ${row.estimate}`))];
  figure($("evaluation-plots"), "plot-evaluation", "Results", "%, 95 % intervals over problems", () => ({
    traces: of.map((label, at) => {
      const mine = rows.filter((row) => row.label === label);
      return {
        type: "scatter", mode: "markers", name: short(label), x: mine.map((row) => 100 * row.value),
        // beside each other, not on top of each other
        y: mine.map((row) => places.indexOf(`${row.benchmark}, ${row.estimate}`) + (at - (of.length - 1) / 2) * (0.5 / of.length)),
        error_x: { type: "data", symmetric: false, array: mine.map((row) => 100 * (row.high - row.value)), arrayminus: mine.map((row) => 100 * (row.value - row.low)), thickness: 2, width: 5 },
        marker: { size: 9, color: colour(`method-${at % 8}`), symbol: ["circle", "square", "diamond", "triangle-up", "x"][at % 5] }, hovertemplate: "%{x:.1f} %",
      };
    }),
    label: `Results of ${of.join(", ")} on ${places.join("; ")}`,
    layout: {
      showlegend: of.length > 1, hovermode: "closest", xaxis: { title: title("%") },
      yaxis: { tickvals: places.map((_, i) => i), ticktext: places.map(plain), range: [places.length - 0.5, -0.5], zeroline: false },
    },
  }));
  $("plot-evaluation").style.height = `${Math.max(270, 110 + 24 * places.length + 8 * of.length)}px`;
}
const logged = [...new Set(runs.flatMap((run) => run.evaluations.map((line) => line.name)))];
for (const [at, name] of logged.entries()) {
  figure($("evaluation-plots"), `plot-logged-${at}`, name, "during training, bars: ±1.96 standard errors", () => {
    const traces = runs.flatMap((run, i) => run.evaluations.filter((line) => line.name === name).map((line) => ({
      type: "scatter", mode: "lines+markers", x: line.x, y: line.y, name: short(run.label), visible: state.shown.has(i), meta: { run: i }, line: { color: runColour(i), width: 2 },
      ...(line.se.some((v) => v !== null) ? { error_y: { type: "data", array: line.se.map((v) => 1.96 * (v ?? 0)), thickness: 1.5 } } : {}),
    })));
    return { traces, label: `${name} over updates`, layout: { xaxis: { title: title("update") }, yaxis: { tickformat: "~g" } } };
  });
}
