// Curves over the run.

// Neither filter makes a plateau of a spike: a running median, and for rewards, lengths and shares, which may be 0 or 1 at
// each step, a mean whose weights fall off exponentially on both sides.
const AVERAGED = new Set(["reward", "functions", "zero_std", "truncated", "length"]);
function smoothed(y, mean) {
  const half = Math.max(1, Math.round(y.length * 0.03));
  return y.map((value, i) => {
    if (value === null) return null;
    // as many on either side, so that the ends are not drawn towards the middle
    const reach = Math.min(mean ? 2 * half : half, i, y.length - 1 - i), near = y.slice(i - reach, i + reach + 1);
    if (!mean) return median(near);
    let total = 0, sum = 0;
    for (const [at, v] of near.entries()) {
      if (v === null) continue;
      const weight = Math.exp((-2 * Math.abs(at - reach)) / half);
      total += weight; sum += weight * v;
    }
    return sum / total;
  });
}
function quantile(values, q) {
  const sorted = values.filter((v) => v !== null).sort((a, b) => a - b), at = q * (sorted.length - 1), low = Math.floor(at);
  return sorted.length ? sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]) : null;
}
const median = (values) => quantile(values, 0.5);
/** Where the axis ends if a few points are far above all others, which would then be a flat line; otherwise null. */
function ceiling(lines) {
  const all = lines.flatMap((line) => line.y).filter((v) => v !== null), most = Math.max(...all), usual = quantile(all, 0.97);
  return all.length >= 30 && usual > 0 && most > 4 * usual ? 1.5 * usual : null;
}
const number = (v) => (v === null || v === undefined ? "unknown" : String(Number(v.toPrecision(3))));
function traced(line, i, dash, name, legend, mean) {
  const smooth = state.smooth && line.y.length > 20;
  const base = { x: line.x, type: "scatter", mode: line.x.length > 1 ? "lines" : "markers", visible: state.shown.has(i), meta: { run: i } };
  const made = [];
  if (smooth) made.push({ ...base, y: line.y, opacity: isDark() ? 0.5 : 0.4, line: { color: runColour(i), width: 1, dash }, hoverinfo: "skip", showlegend: false });
  made.push({ ...base, y: smooth ? smoothed(line.y, mean) : line.y, name, line: { color: runColour(i), width: 2, dash }, showlegend: legend });
  return made;
}
function resumes() {
  const steps = [...state.shown].flatMap((i) => runs[i].resumed.map((x) => [x, i]));
  return steps.map(([x, i]) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: runColour(i), width: 1, dash: "dot" } }));
}
/** The runs of a group that are shown, in one line: at each update the median, and the lowest and the highest. */
function together(name, words, at) {
  const mine = runs.flatMap((run, i) => (groups.of[i] === at && state.shown.has(i) ? run.charts[name].filter((line) => line.name === words) : []));
  const places = new Map();
  for (const line of mine) for (const [k, x] of line.x.entries()) if (line.y[k] !== null) places.set(x, [...(places.get(x) ?? []), line.y[k]]);
  const x = [...places.keys()].sort((a, b) => a - b), values = x.map((place) => places.get(place));
  return { runs: mine.length, x, y: values.map(median), low: values.map((v) => Math.min(...v)), high: values.map((v) => Math.max(...v)) };
}
const translucent = (hex, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;
function banded(name, words, at, dash, legend) {
  const found = together(name, words, at), paint = colour(`run-${at % 8}`), mean = AVERAGED.has(name);
  const smooth = (y) => (state.smooth && y.length > 20 ? smoothed(y, mean) : y);
  const base = { x: found.x, type: "scatter", mode: found.x.length > 1 ? "lines" : "markers", hoverinfo: "skip", showlegend: false };
  const label = legend ? `${words}, ${short(groups.labels[at])}` : short(groups.labels[at]);
  return [
    ...(found.runs > 1 ? [
      { ...base, y: smooth(found.low), line: { width: 0 }, meta: { group: at, part: "low" } },
      { ...base, y: smooth(found.high), line: { width: 0 }, fill: "tonexty", fillcolor: translucent(paint, 0.2), meta: { group: at, part: "high" } },
    ] : []),
    { ...base, y: smooth(found.y), name: label, line: { color: paint, width: 2, dash }, hoverinfo: "all", showlegend: legend, meta: { group: at, part: "median" } },
  ];
}
function curve(name) {
  const chart = data.charts[name];
  return () => {
    const visible = runs.flatMap((run, i) => (state.shown.has(i) ? run.charts[name] : []));
    const top = ceiling(visible);
    const used = [...new Set(runs.flatMap((run) => run.charts[name].map((line) => line.name)))];
    const traces = [], words = [];
    if (groups.several) {
      for (const [at, group] of groups.labels.entries()) {
        for (const [place, line] of used.entries()) {
          const found = together(name, line, at);
          if (!found.runs) continue;
          traces.push(...banded(name, line, at, place ? DASHES[(place - 1) % DASHES.length] : "solid", used.length > 1));
          words.push(`${group}, ${line}: from ${number(found.y[0])} to ${number(found.y.at(-1))}`);
        }
      }
    }
    for (const [i, run] of runs.entries()) {
      for (const line of run.charts[name]) {
        const at = used.indexOf(line.name);
        const full = used.length > 1 ? (runs.length > 1 ? `${line.name}, ${short(run.label)}` : line.name) : short(run.label);
        if (groups.several) traces.push({ x: line.x, y: line.y, type: "scatter", mode: "lines", opacity: 0.3, line: { color: runColour(i), width: 1 }, hoverinfo: "skip", showlegend: false, visible: state.shown.has(i), meta: { run: i, part: "raw" } });
        else traces.push(...traced(line, i, at > 0 ? DASHES[(at - 1) % DASHES.length] : "solid", full, used.length > 1, AVERAGED.has(name)));
        if (top !== null) {
          const beyond = line.x.map((x, k) => [x, line.y[k]]).filter(([, y]) => y !== null && y > top);
          traces.push({
            type: "scatter", mode: "markers", x: beyond.map(([x]) => x), y: beyond.map(() => 0.98 * top), customdata: beyond.map(([, y]) => y), name: full,
            visible: state.shown.has(i), meta: { run: i, part: "beyond" }, showlegend: false, marker: { symbol: "triangle-up", size: 9, color: runColour(i) }, hovertemplate: "%{customdata:.3~g}, beyond the axis",
          });
        }
        if (!groups.several) words.push(`${run.label}, ${line.name}: from ${number(line.y[0])} to ${number(line.y.at(-1))}`);
      }
    }
    return {
      traces, label: `${chart.title} (${chart.unit}) over updates. ${words.join(". ")}`,
      layout: { showlegend: used.length > 1, shapes: resumes(), xaxis: { title: title("update") }, yaxis: { tickformat: name === "learning_rate" ? ".1e" : "~g", ...(top === null ? { rangemode: "tozero" } : { range: [Math.min(0, ...visible.flatMap((line) => line.y.filter((v) => v !== null))), top] }) } },
    };
  };
}
const small = (words) => (/^[A-Z][a-z]/.test(words) ? words[0].toLowerCase() + words.slice(1) : words);
const missing = [], constant = [];
for (const [name, chart] of Object.entries(data.charts)) {
  const lines = runs.flatMap((run) => run.charts[name]), drawn = new Set(lines.map((line) => line.name));
  const values = new Set(lines.flatMap((line) => line.y));
  if (!lines.length) {
    // which of several, so that "KL divergence" is not denied where that from the reference is drawn
    const of = [...new Set(chart.lines.map((line) => line.replace(/ \(.*/, "")))];
    if (of.length) missing.push(small(chart.title) + (of.length > 1 ? ` (${of.join(", ")})` : ""));
    continue;
  }
  // a flat line says less than its value; rewards are drawn all the same, because a flat one is what is wrong
  if (values.size === 1 && !["reward", "functions"].includes(name)) {
    const [only] = values;
    constant.push(only === null ? `${small(chart.title)} was never a finite number` : `${small(chart.title)} is ${number(only)} throughout`);
    continue;
  }
  const of = chart.lines.length > 1 && drawn.size === 1 ? `${[...drawn][0]}, ` : "", unit = of + chart.unit;
  const beyond = ceiling(lines) === null ? "" : `${unit ? "; " : ""}▲ beyond the axis`;
  figure($("curve-plots"), `plot-${name}`, chart.title, unit + beyond, curve(name));
}
if (!$("curve-plots").children.length) $("curve-plots").append(element("p", { class: "empty" }, "The log has none of the quantities that are drawn."));
$("curve-note").textContent = [constant.length ? `Not drawn: ${constant.join("; ")}.` : "", missing.length ? `Not in the log: ${missing.join(", ")}.` : ""].join(" ");
