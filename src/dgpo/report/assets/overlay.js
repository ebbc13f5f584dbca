// The tokens on the weight curves of any method.

const curves = data.weights;
const own = new Map(); // method -> run that was trained with it
for (const [i, run] of runs.entries()) if (run.objective && !own.has(run.objective)) own.set(run.objective, i);
function style(at) {
  const label = curves.methods[at].label;
  if (own.has(label)) return { color: runColour(own.get(label)), dash: "solid", width: 3 };
  return { color: colour(`method-${at % 8}`), dash: DASHES[Math.floor(at / 8) % DASHES.length], width: 2 };
}
function ticks(reach) {
  const up = [1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];
  const down = [0.9, 0.8, 0.6, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8];
  const found = [1];
  for (const side of [up, down]) {
    let last = 0;
    for (const r of side) {
      const x = Math.abs(Math.log(r));
      if (x <= reach && x - last >= reach / 5.5) { found.push(r); last = x; }
    }
  }
  return { tickvals: found, ticktext: found.map((r) => (r >= 1e4 || r < 1e-3 ? r.toExponential(0) : String(r))) };
}
const ratioAxis = (reach) => ({
  type: "log", title: title("importance ratio r = π/π_old (log scale)"), unifiedhovertitle: { text: "r = %{x:.3g}" },
  range: [-reach / Math.LN10, reach / Math.LN10], ...ticks(reach),
});
const upright = (r) => ({ type: "line", x0: r, x1: r, yref: "paper", y0: 0, y1: 1, line: { color: colour("quiet"), width: 1, dash: "dot" } });
const based = (w, x, q, basis) => (w === null || basis === "log" ? w : w > 0 ? w / (q * Math.exp(x)) : null);

function overlay(sign) {
  return () => {
    const x = curves.log_ratio, q = curves.old_probs[state.old].value, traces = [];
    for (const [i, run] of runs.entries()) {
      if (!run.histogram) continue;
      const bins = run.histogram.edges.map(Math.exp), share = run.histogram[sign];
      traces.push({
        type: "bar", x: share.map((_, at) => (bins[at] + bins[at + 1]) / 2), y: share.map((v) => (v > 0 ? v : null)),
        width: share.map((_, at) => bins[at + 1] - bins[at]), marker: { color: runColour(i), opacity: runs.length > 1 ? 0.3 : 0.35 },
        name: `tokens, ${short(run.label)}`, visible: state.shown.has(i), meta: { run: i }, hovertemplate: "%{y:.2p} of the tokens",
      });
    }
    const most = Math.max(10, ...runs.map((run) => run.histogram?.tokens ?? 0));
    let top = 1, low = Infinity;
    for (const [at, method] of curves.methods.entries()) {
      const w = method[sign][state.old], y = w.map((v, k) => based(v, x[k], q, state.basis));
      const chosen = state.methods.has(at);
      if (chosen) for (const v of y) if (v !== null) { top = Math.max(top, v); if (v > 0) low = Math.min(low, v); }
      traces.push({ type: "scatter", mode: "lines", yaxis: "y2", x: x.map(Math.exp), y, name: plain(method.label), line: style(at), visible: chosen, meta: { method: method.label }, hovertemplate: "%{y:.3g}" });
    }
    const prob = state.basis === "prob";
    const range = prob ? [Math.log10(Math.max(low, top / 1e4)) - 0.1, Math.log10(top) + 0.1] : [0, 1.05 * Math.min(top, 5)];
    const named = [...state.methods].map((at) => curves.methods[at].label).join(", ");
    return {
      traces, label: `Tokens with A ${sign === "negative" ? "below" : "above"} 0 over the importance ratio, on the weight of ${named || "no method"}`,
      layout: {
        showlegend: true, barmode: "overlay", bargap: 0, shapes: [upright(1)], margin: { l: 54, r: 60, t: 12, b: 46 },
        xaxis: ratioAxis(-x[0]),
        yaxis: {
          side: "right", type: "log", title: title("share of tokens (log scale)"), showgrid: false, range: [Math.log10(0.5 / most), 0],
          tickvals: [1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], ticktext: ["100 %", "10 %", "1 %", "0.1 %", "0.01 %", "10⁻³ %", "10⁻⁴ %", "10⁻⁵ %"],
        },
        yaxis2: { side: "left", overlaying: "y", ...(prob ? { tickmode: "linear", dtick: range[1] - range[0] < 2 ? "D2" : 1 } : { tickmode: "auto", nticks: 8 }), type: prob ? "log" : "linear", title: title(prob ? "w/π, weight on ∇π (log scale)" : "w, weight on ∇log π"), range, ...(prob ? { tickformat: "~g" } : {}) },
      },
    };
  };
}
plots.set("plot-overlay-negative", overlay("negative"));
plots.set("plot-overlay-positive", overlay("positive"));

for (const [at, method] of curves.methods.entries()) {
  if (own.has(method.label)) state.methods.add(at);
}
// beside the run's own: what most readers know, and how it differs from that
for (const known of ["grpo", "dgpo", "cispo"]) {
  const at = curves.methods.findIndex((method) => method.label === known);
  if (at >= 0 && state.methods.size < 3) state.methods.add(at);
}
for (const [at, method] of curves.methods.entries()) {
  const box = element("input", { type: "checkbox", value: String(at), checked: state.methods.has(at) });
  box.addEventListener("change", () => {
    if (box.checked) state.methods.add(at); else state.methods.delete(at);
    drawAll((id) => id.startsWith("plot-overlay"));
  });
  const stroke = element("span", { class: "stroke", "aria-hidden": "true" });
  strokes.push(() => {
    const { color, dash } = style(at);
    stroke.style.borderTopColor = color;
    stroke.style.borderTopStyle = { solid: "solid", dot: "dotted" }[dash] ?? "dashed";
  });
  $("methods").append(element("label", {}, box, stroke, method.label));
}
for (const [i, { name, value }] of curves.old_probs.entries()) $("overlay-old").append(element("option", { value: String(i) }, name ? `${number(value)}, ${name}` : number(value)));
$("overlay-old").addEventListener("change", (event) => { state.old = Number(event.target.value); drawAll((id) => id.startsWith("plot-overlay")); });
for (const radio of document.querySelectorAll("input[name=overlay-basis]")) {
  radio.addEventListener("change", () => { state.basis = radio.value; drawAll((id) => id.startsWith("plot-overlay")); });
}
{
  const without = runs.filter((run) => !run.histogram).map((run) => `${run.label}: ${run.no_tokens}`);
  const adaptive = curves.methods.filter((m) => m.adaptive).map((m) => m.label), sequence = curves.methods.filter((m) => m.sequence).map((m) => m.label);
  $("overlay-note").textContent = [
    "Curves end where π would be above 1, and on a log scale where w is 0; |A| is 1. The outermost bars hold the tokens beyond them, too.",
    adaptive.length ? `${adaptive.join(", ")}: with the bounds that the search starts from.` : "",
    sequence.length ? `${sequence.join(", ")}: weigh whole responses, drawn as if the response were this one token.` : "",
    ...without,
  ].filter(Boolean).join(" ");
}
