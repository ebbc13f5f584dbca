// Theme, printing and sorting of tables; and the first drawing.

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

refresh();
root.dataset.ready = "true";
