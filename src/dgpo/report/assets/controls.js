// Which runs are shown, and their settings.

for (const [i, run] of runs.entries()) {
  const box = element("input", { type: "checkbox", value: String(i), checked: true });
  box.addEventListener("change", () => {
    if (box.checked) state.shown.add(i); else state.shown.delete(i);
    drawAll((id) => !id.startsWith("plot-explorer"));
  });
  $("runs").append(element("label", {}, box, element("span", { class: `swatch run-${run.colour % 8}`, "aria-hidden": "true" }), run.label));
}
$("runs").hidden = runs.length < 2;
if (groups.several) {
  for (const [at, name] of groups.labels.entries()) {
    const count = groups.of.filter((of) => of === at).length;
    $("groups").append(element("span", { class: "run" }, element("span", { class: `swatch run-${at % 8}`, "aria-hidden": "true" }), `${name} (${count === 1 ? "1 run" : `${count} runs`})`));
  }
  $("groups").append(element("span", { class: "aside" }, "line: median; band: lowest to highest run"));
}
$("groups").hidden = !groups.several;

// sections that are about one run each show one at a time
const details = [...document.querySelectorAll(".of-run[data-run]")];
const selects = [];
function choose(i) {
  state.detail = i;
  for (const part of details) part.hidden = Number(part.dataset.run) !== i;
  for (const select of selects) select.value = String(i);
  drawAll((id) => id.startsWith("plot-regions"));
}
if (runs.length > 1) {
  for (const section of new Set(details.map((part) => part.closest("section")))) {
    const select = element("select", {});
    for (const [i, run] of runs.entries()) select.append(element("option", { value: String(i) }, run.label));
    select.addEventListener("input", () => choose(Number(select.value)));
    selects.push(select);
    section.querySelector("h2").after(element("div", { class: "controls" }, element("label", {}, "Run ", select)));
  }
}
$("smooth").addEventListener("change", (event) => { state.smooth = event.target.checked; drawAll(); });

const settings = $("settings");
if (settings && runs.length < 2) $("differences-label").hidden = true;
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

if (runs.length > 1) choose(0);
// a link into a part of another run shows that run
for (const link of document.querySelectorAll("a[href^='#findings-']")) link.addEventListener("click", () => choose(Number(link.hash.slice(10))));

window.dgpoReport = typeof families === "undefined" ? { state } : { dgpo, maspo, families, explored, state };
