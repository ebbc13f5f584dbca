// Two families of objectives, evaluated here, with a slider for each field.

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
