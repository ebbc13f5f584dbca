// What all parts of the page use: its data, elements, colours, and how a plot is drawn.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs ?? [];
const root = document.documentElement;
const $ = (id) => document.getElementById(id);
const DASHES = ["dash", "dot", "dashdot", "longdash"];
const REGIONS = [["left", "left"], ["right", "right"], ["reverse_left", "reverse left"], ["reverse_right", "reverse right"]];
const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]] };
const state = { shown: new Set(runs.keys()), smooth: true, detail: 0, methods: new Set(), basis: "log", old: 0 };

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
const runColour = (i) => colour(`run-${runs[i].colour % 8}`);
const groups = data.groups ?? { labels: [], of: [], several: false };
const isDark = () => getComputedStyle(root).colorScheme === "dark";
// plotly reads <b>, <i>, <a> in its texts: a run's name is shown as it was written
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (text) => { const s = String(text); return plain(s.length > 28 ? `…${s.slice(-27)}` : s); };

const strokes = []; // repaint what has the colour of a method, when the theme changes
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
