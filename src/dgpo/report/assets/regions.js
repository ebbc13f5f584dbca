// Where the tokens are between the boundaries of the objective.

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
      traces, label: `${KINDS[kind]} outside the boundaries in ${run.label}, ${within ? "by update within the generation" : "over updates"}; at the end ${ends}`,
      layout: {
        showlegend: true, barmode: "stack", bargap: 0.35, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 11 } },
        xaxis: { title: title(within ? "update within its generation (1: on-policy)" : "update"), ...(within ? { dtick: Math.max(1, Math.ceil(found.x.length / 16)) } : {}) },
        yaxis: { range: [0, tallest(part, kind)], ticksuffix: " %" },
      },
    };
  };
}
function counted(all, what) {
  const some = all.slice(0, 4).join(", ") + (all.length > 4 ? ", …" : "");
  return `${all.length} ${what}${all.length > 1 ? "s" : ""} (${some})`;
}
for (const [i, run] of runs.entries()) {
  const holder = element("div", { class: "of-run", id: `regions-${i}`, "data-run": String(i) });
  if (runs.length > 1) holder.append(element("h3", {}, element("span", { class: "run" }, element("span", { class: `swatch run-${run.colour % 8}` }), run.label)));
  const grid = element("div", { class: "grid two" }), idle = [];
  $("region-plots").append(holder);
  holder.append(grid);
  for (const part of ["over", "within"]) {
    for (const kind of ["fraction", "mass"]) {
      if (!run.regions[part][kind]) continue;
      if (REGIONS.every(([key]) => run.regions[part][kind][key].every((v) => !v))) { idle.push(KINDS[kind].toLowerCase()); continue; }
      const unit = `${kind === "fraction" ? "% of tokens" : "% of Σ|A·w|"}, ${part === "over" ? (run.regions.from === "log" ? "as logged" : "mean per generation") : "mean over generations"}`;
      figure(grid, `plot-regions-${part}-${kind}-${i}`, `${KINDS[kind]} outside the range`, unit, regionPlot(run, part, kind));
    }
  }
  let note = run.regions.from === "tokens" ? run.thinned || `From the tokens of ${run.read} of ${run.recorded} recorded updates.` : `From the log: ${run.no_tokens}.`;
  if (idle.length) note = `Nothing is outside the range on any update that was read (${[...new Set(idle)].join(", ")}): the policy hardly moves between updates, and no boundary acts. ${note}`;
  else if (!grid.children.length) note = `Nothing to show: ${run.no_tokens}, and its log has no regions.`;
  if (run.broken.length) note += ` Left out, because a token is NaN or infinite there: update ${run.broken.join(", ")}.`;
  if (run.incomplete.length) note += ` Left out, because the file of a rank is missing: ${counted(run.incomplete, "update")}.`;
  if (run.damaged.length) note += ` Left out, because they cannot be read: ${counted(run.damaged, "file")}.`;
  holder.append(element("p", { class: "aside" }, note));
}
