"use strict";
// What all parts of the page share. Text from the data reaches the page through textContent, and a chart through
// `plain`: nothing in it is read as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value; else made.setAttribute(name, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return made;
}

const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function number(x, digits = 4) {
  if (!isNumber(x)) return "–";
  const size = Math.abs(x);
  return size !== 0 && (size >= 1e6 || size < 1e-4) ? x.toExponential(2) : String(Number(x.toPrecision(digits)));
}

const MARKS = { fp32: "circle", fp16: "square", int8: "diamond" };
const precisionColour = (precision) =>
  colour({ fp32: "c-fp32", tf32: "c-fp32", fp16: "c-fp16", bf16: "c-fp16" }[precision] || (precision.startsWith("int8") ? "c-int8" : "c-other"));
const precisionMark = (precision) => MARKS[precision] || (precision.startsWith("int8") ? "diamond" : "triangle-up");
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

// Charts are drawn again when colours or the paper change; each is one function that gives data and layout.
const charts = new Map();
let printing = false;

function chart(id, make) {
  const place = $(id);
  if (!place) return;
  charts.set(id, make);
  draw(id);
}

function draw(id) {
  const place = $(id), made = charts.get(id)();
  if (!made) { place.closest("figure").hidden = true; return; }
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: printing ? 9 : 12, color: colour("ink") },
    margin: { l: 50, r: 14, t: 14, b: 42 }, showlegend: false, hovermode: "closest",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    ...made.layout,
  };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    layout[name] = { ...axis, ...layout[name] };
    if (layout[name].title) layout[name].title = { standoff: 8, ...layout[name].title };
  }
  if (printing) { // the event comes before the paper's layout
    layout.width = Number(place.dataset.paper) || 680;
    if (place.dataset.tall) layout.height = Number(place.dataset.tall);
  }
  const options = { responsive: true, displayModeBar: false }; // a drag zooms, a double click goes back
  Plotly.react(place, made.data, layout, options);
}

const redraw = () => charts.forEach((_, id) => draw(id));
addEventListener("theme", redraw);
const showTheme = () => { $("theme").textContent = `theme: ${theme.name()}`; };
$("theme").addEventListener("click", () => { theme.next(); showTheme(); });
showTheme();
addEventListener("beforeprint", () => { printing = true; theme.print(true); });
addEventListener("afterprint", () => { printing = false; theme.print(false); });
