// Runs, theme, printing, tables and settings; and the first drawing.

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
