// Which runs are shown, and their settings.

for (const [i, run] of runs.entries()) {
  const box = element("input", { type: "checkbox", value: String(i), checked: true });
  box.addEventListener("change", () => {
    if (box.checked) state.shown.add(i); else state.shown.delete(i);
    if ($(`regions-${i}`)) $(`regions-${i}`).hidden = !box.checked;
    drawAll((id) => !id.startsWith("plot-explorer"));
  });
  $("runs").append(element("label", {}, box, element("span", { class: `swatch run-${i % 8}`, "aria-hidden": "true" }), run.label));
}
$("runs").hidden = runs.length < 2;
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

window.dgpoReport = typeof families === "undefined" ? { state } : { dgpo, maspo, families, explored, state };
