"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs;
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const DASHES = ["dash", "dot", "dashdot", "longdash"];
  const REGIONS = [["left", "left"], ["right", "right"], ["reverse_left", "reverse left"], ["reverse_right", "reverse right"]];
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]] };
  const state = { shown: new Set(runs.keys()), smooth: true, methods: new Set(), basis: "log", old: 0 };

  // --- elements and colours ------------------------------------------------------------------------------------------

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") made.className = value;
      else if (key in made && key !== "style") made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const runColour = (i) => colour(`run-${i % 8}`);
  const isDark = () => getComputedStyle(root).colorScheme === "dark";
  // plotly reads <b>, <i>, <a> in its texts: a run's name is shown as it was written
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const short = (text) => { const s = String(text); return plain(s.length > 28 ? `…${s.slice(-27)}` : s); };

  // --- plots ---------------------------------------------------------------------------------------------------------

  const plots = new Map(); // id -> what draws it: () => { traces, layout, label }

  function themed(layout) {
    const axis = { gridcolor: colour("grid"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
    const made = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("text") }, namelength: -1 },
      margin: { l: 50, r: 14, t: 12, b: 42 }, showlegend: false, hovermode: "x unified", dragmode: "zoom",
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", font: { size: 11 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("quiet"), activecolor: colour("accent") },
      ...layout,
    };
    for (const name of ["xaxis", "yaxis", "yaxis2"]) if (layout[name]) made[name] = { ...axis, ...layout[name] };
    return made;
  }
  let printing = 0;
  function draw(id) {
    const box = $(id), { traces, layout, label } = plots.get(id)();
    box.setAttribute("role", "group"); // not img: its buttons are reached by keyboard
    box.setAttribute("aria-label", label);
    if (box.closest("[hidden]")) return;
    Plotly.react(box, traces, themed({ ...layout, ...(printing ? { width: printing, autosize: false } : { autosize: true }) }), CONFIG);
  }
  const drawAll = (some = () => true) => { for (const id of plots.keys()) if (some(id)) draw(id); };
  const title = (text) => ({ text, font: { size: 12 }, standoff: 6 });

  function figure(parent, id, caption, unit, drawing) {
    const head = element("figcaption", {}, caption);
    if (unit) head.append(" ", element("span", { class: "unit" }, `(${unit})`));
    parent.append(element("figure", {}, head, element("div", { class: "plot", id })));
    plots.set(id, drawing);
  }

  // --- curves --------------------------------------------------------------------------------------------------------

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

  // --- regions -------------------------------------------------------------------------------------------------------

  const KINDS = { fraction: "Tokens", mass: "Gradient mass" };
  function tallest(part, kind) {
    const sums = runs.flatMap((run) => {
      const found = run.regions[part]?.[kind];
      return found ? found.x.map((_, at) => REGIONS.reduce((sum, [key]) => sum + (found[key][at] ?? 0), 0)) : [];
    });
    return Math.max(0.1, 108 * Math.max(0, ...sums));
  }
  function regionPlot(run, part, kind) {
    return () => {
      const found = run.regions[part][kind], within = part === "within";
      const traces = REGIONS.map(([key, words]) => {
        const fill = colour(key.replace("_", "-")), y = found[key].map((v) => (v === null ? null : 100 * v));
        const shape = within ? { type: "bar", marker: { color: fill } } : { type: "scatter", mode: "lines", stackgroup: "regions", fillcolor: fill, line: { color: fill, width: 0.5 } };
        return { x: found.x.map((x) => (within ? x + 1 : x)), y, name: words, hovertemplate: "%{y:.2f} %", ...shape };
      });
      const ends = REGIONS.map(([key, words]) => `${words} ${number(100 * (found[key].at(-1) ?? 0))} %`).join(", ");
      return {
        traces, label: `${KINDS[kind]} outside the clip range in ${run.label}, ${within ? "by update within the generation" : "over updates"}; at the end ${ends}`,
        layout: {
          showlegend: true, barmode: "stack", bargap: 0.35, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 11 } },
          xaxis: { title: title(within ? "update within its generation (1: on-policy)" : "update"), ...(within ? { dtick: Math.max(1, Math.ceil(found.x.length / 16)) } : {}) },
          yaxis: { range: [0, tallest(part, kind)], ticksuffix: " %" },
        },
      };
    };
  }
  for (const [i, run] of runs.entries()) {
    const holder = element("div", { class: "of-run", id: `regions-${i}` });
    if (runs.length > 1) holder.append(element("h3", {}, element("span", { class: "run" }, element("span", { class: `swatch run-${i % 8}` }), run.label)));
    const grid = element("div", { class: "grid two" });
    $("region-plots").append(holder);
    holder.append(grid);
    for (const part of ["over", "within"]) {
      for (const kind of ["fraction", "mass"]) {
        if (!run.regions[part][kind]) continue;
        const unit = `${kind === "fraction" ? "% of tokens" : "% of Σ|A·w|"}, ${part === "over" ? (run.regions.from === "log" ? "as logged" : "mean per generation") : "mean over generations"}`;
        figure(grid, `plot-regions-${part}-${kind}-${i}`, `${KINDS[kind]} outside the range`, unit, regionPlot(run, part, kind));
      }
    }
    let note = run.regions.from === "tokens" ? `From the tokens of ${run.read} of ${run.recorded} recorded updates.` : `From the log: ${run.no_tokens}.`;
    if (!grid.children.length) note = `Nothing to show: ${run.no_tokens}, and its log has no regions.`;
    if (run.broken.length) note += ` Left out, because a token is NaN or infinite there: update ${run.broken.join(", ")}.`;
    holder.append(element("p", { class: "aside" }, note));
  }

  // --- tokens on weight curves ---------------------------------------------------------------------------------------

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
  for (let at = 0; at < curves.methods.length && state.methods.size < 3; at++) state.methods.add(at);
  const strokes = [];
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

  // --- explorer ------------------------------------------------------------------------------------------------------

  const MAX_LOG_RATIO = 20;
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  /** w of the DGPO family: x the log ratio, A the advantage; fields as in Python. */
  function dgpo(x, A, { n, m, eps_low, eps_high, reverse_cap = null, right_cap = null }) {
    x = clamp(x, -MAX_LOG_RATIO, MAX_LOG_RATIO);
    const low = Math.log1p(-eps_low), high = Math.log1p(eps_high);
    let log = x;
    if (A < 0 && x < low) log = low + (n + 1) * (x - low);
    if (A > 0 && x > high) log = high + (1 - 1 / m) * (x - high);
    if (A < 0 && reverse_cap !== null) log = Math.min(log, Math.log(reverse_cap));
    if (A > 0 && right_cap !== null) log = Math.min(log, Math.log(right_cap));
    return Math.exp(log);
  }
  /** w of the MASPO family: also q = π_old. */
  function maspo(x, A, q, { sigma_base, alpha, beta_pos, beta_neg, sigma_high, adv_low, adv_high }) {
    x = clamp(x, -MAX_LOG_RATIO, MAX_LOG_RATIO);
    const width = clamp(Math.log(sigma_base) - alpha * Math.log(q), Math.log(sigma_base), Math.log(sigma_high));
    const risk = clamp((1 + beta_pos * Math.max(A, 0)) / (1 - beta_neg * Math.min(A, 0)), adv_low, adv_high);
    const gated = A * x > 0 ? Math.expm1(x) / (Math.exp(width) * risk) : 0;
    return Math.exp(x - 0.5 * gated * gated);
  }

  const SLIDERS = [
    ["n", "n, decay on the left", "dgpo", "n", 0, 8, 0.1], ["m", "m, root on the right", "dgpo", "m", 1, 10, 0.1],
    ["eps_low", "ε low", "dgpo", "eps_low", 0, 0.95, 0.01], ["eps_high", "ε high", "dgpo", "eps_high", 0, 2, 0.01],
    ["alpha", "α, MASPO: wider for rare tokens", "maspo", "alpha", 0, 1, 0.01], ["sigma", "σ, MASPO: width of the gate", "maspo", "sigma_base", 0.05, 3, 0.05],
    ["old", "π_old of the token", null, null, -4, 0, 0.05], ["advantage", "|A|", null, null, 0.1, 4, 0.1],
  ];
  const explored = { old: -1, advantage: 1 };
  const start = (key, family, field) => (family ? data.explorer[family][field] : { old: -1, advantage: 1 }[key]);
  for (const [key, words, family, field, min, max, step] of SLIDERS) {
    explored[key] = start(key, family, field);
    const input = element("input", { type: "range", id: `slider-${key}`, min: String(min), max: String(max), step: String(step) });
    input.value = String(explored[key]);
    const output = element("output", { id: `value-${key}`, htmlFor: `slider-${key}` });
    const say = () => {
      output.textContent = key === "old" ? number(10 ** explored.old) : number(explored[key]);
      if (key === "old") input.setAttribute("aria-valuetext", output.textContent);
    };
    say();
    input.addEventListener("input", () => { explored[key] = Number(input.value); say(); drawAll((id) => id.startsWith("plot-explorer")); });
    // an output can be labelled, too, and would be what the label is for
    $("sliders").append(element("label", { htmlFor: input.id }, element("span", {}, words), output, input));
  }
  const reset = element("button", { type: "button", id: "reset" }, "Reset to the defaults");
  reset.addEventListener("click", () => {
    for (const [key, , family, field] of SLIDERS) {
      const input = $(`slider-${key}`);
      input.value = String(start(key, family, field));
      input.dispatchEvent(new Event("input"));
    }
  });
  $("sliders").append(reset);

  const families = () => ({
    dgpo: { ...data.explorer.dgpo, n: explored.n, m: explored.m, eps_low: explored.eps_low, eps_high: explored.eps_high },
    // the gate of a rare token is never narrower than that of a certain one
    maspo: { ...data.explorer.maspo, alpha: explored.alpha, sigma_base: explored.sigma, sigma_high: Math.max(data.explorer.maspo.sigma_high, explored.sigma) },
  });
  function explore(basis) {
    return () => {
      const fields = families(), q = 10 ** explored.old, reach = Math.log(10), top = Math.min(reach, -Math.log(q));
      const edge = [Math.log1p(-fields.dgpo.eps_low), Math.log1p(fields.dgpo.eps_high)];
      const x = [...Array.from({ length: 241 }, (_, i) => -reach + (i * 2 * reach) / 240), ...edge].filter((v) => v <= top + 1e-9 && v >= -reach).sort((a, b) => a - b);
      const traces = [{ type: "scatter", mode: "lines", x: x.map(Math.exp), y: x.map((v) => based(Math.exp(v), v, q, basis)), name: "w = r, unclipped", line: { color: colour("quiet"), width: 1.5, dash: "dot" }, hovertemplate: "%{y:.3g}" }];
      for (const [family, label, paint, weigh] of [["dgpo", "DGPO", "method-0", (v, A) => dgpo(v, A, fields.dgpo)], ["maspo", "MASPO", "method-1", (v, A) => maspo(v, A, q, fields.maspo)]]) {
        for (const sign of [-1, 1]) {
          traces.push({
            type: "scatter", mode: "lines", x: x.map(Math.exp), y: x.map((v) => based(weigh(v, sign * explored.advantage), v, q, basis)), name: `${label}, A ${sign < 0 ? "< 0" : "> 0"}`.replace("<", "&lt;").replace(">", "&gt;"),
            meta: { family, sign }, line: { color: colour(paint), width: 2.5, dash: sign < 0 ? "dash" : "solid" }, hovertemplate: "%{y:.3g}",
          });
        }
      }
      const prob = basis === "prob", unit = Math.log10(1 / q);
      const shapes = edge.map((v) => upright(Math.exp(v)));
      return {
        traces, label: `Weight on ${prob ? "∇π" : "∇log π"} over the importance ratio for DGPO with n ${explored.n}, m ${explored.m} and MASPO with alpha ${explored.alpha}, sigma ${explored.sigma}`,
        layout: {
          showlegend: true, shapes, xaxis: ratioAxis(reach), margin: { l: 54, r: 14, t: 12, b: 46 },
          yaxis: prob ? { type: "log", title: title("w/π (log scale)"), dtick: 1, range: [unit - 2, unit + 1], tickformat: "~g" } : { title: title("w"), range: [0, 3] },
        },
      };
    };
  }
  plots.set("plot-explorer-log", explore("log"));
  plots.set("plot-explorer-prob", explore("prob"));

  // --- evaluation ----------------------------------------------------------------------------------------------------

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

  // --- controls of the page ------------------------------------------------------------------------------------------

  for (const [i, run] of runs.entries()) {
    const box = element("input", { type: "checkbox", value: String(i), checked: true });
    box.addEventListener("change", () => {
      if (box.checked) state.shown.add(i); else state.shown.delete(i);
      $(`regions-${i}`).hidden = !box.checked;
      drawAll((id) => !id.startsWith("plot-explorer"));
    });
    $("runs").append(element("label", {}, box, element("span", { class: `swatch run-${i % 8}`, "aria-hidden": "true" }), run.label));
  }
  $("runs").hidden = runs.length < 2;
  $("smooth").addEventListener("change", (event) => { state.smooth = event.target.checked; drawAll(); });

  const theme = $("theme");
  function refresh() {
    const dark = isDark();
    theme.textContent = dark ? "◑ light" : "◐ dark";
    theme.setAttribute("aria-label", `Switch to the ${dark ? "light" : "dark"} theme`);
    for (const paint of strokes) paint();
    drawAll();
  }
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; refresh(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);

  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; printing = 330; refresh(); });
  addEventListener("afterprint", () => { printing = 0; if (before) root.dataset.theme = before; else delete root.dataset.theme; refresh(); });

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    for (const [column, head] of heads.entries()) {
      head.querySelector("button").addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const key = (row) => { const cell = row.cells[column]; return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value); };
        const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
        const rows = [...table.tBodies[0].rows].sort((a, b) => (rising ? 1 : -1) * compare(key(a), key(b)));
        table.tBodies[0].append(...rows);
      });
    }
  }

  const settings = $("settings");
  if (runs.length < 2) $("differences-label").hidden = true;
  function filter() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of settings.querySelectorAll("tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || ($("differences").checked && !row.classList.contains("differs"));
      found += row.hidden ? 0 : 1;
    }
    $("matches").textContent = `${found} settings`;
  }
  if (settings) { $("search").addEventListener("input", filter); $("differences").addEventListener("change", filter); filter(); }

  refresh();
  window.dgpoReport = { dgpo, maspo, families, explored, state };
  root.dataset.ready = "true";
})();
