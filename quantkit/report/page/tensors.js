"use strict";
// The table of tensors, and the histogram of the one that is chosen.
const TENSORS = DATA.tensors || [];
const METHODS = DATA.methods || [];
const BY_NAME = new Map(TENSORS.map((row) => [row.name, row]));
const own = (row) => BY_NAME.get(row.same_as) || row; // where histogram and ranges of a reordered copy are
const methodColour = (method) => colour(`m${METHODS.indexOf(method) % 8}`);
const methodDash = (method) => DASHES[METHODS.indexOf(method) % DASHES.length];
const largest = (row) => Math.max(Math.abs(row.minimum ?? 0), Math.abs(row.maximum ?? 0)) || row.amax || 0;

const COLUMNS = [
  { title: "tensor", value: (row) => row.name, cell: (row) => el("td", { class: "name", title: row.name }, row.name) },
  { title: "kind", value: (row) => row.kind },
  { title: "INT8", value: (row) => (row.quantized ? 1 : 0), cell: (row) => el("td", {}, row.quantized == null ? "?" : row.quantized ? "yes" : "") },
  { title: "max |x|", numeric: true, value: largest },
  { title: "ranges", value: (row) => shareOf(row, row.amax), cell: (row) => el("td", {}, strip(row)) },
  ...METHODS.map((method) => ({ title: method, numeric: true, value: (row) => own(row).ranges?.[method],
    cell: (row) => el("td", { class: row.method === method ? "n used" : "n" }, number(own(row).ranges?.[method])) })),
  // A method's own column shows in bold what is used; a table of another origin needs a column for it.
  ...(TENSORS.every((row) => METHODS.includes(row.method)) ? [] : [{ title: "used", numeric: true, value: (row) => row.amax }]),
  { title: "SQNR dB", numeric: true, value: (row) => own(row).sqnr_db },
  { title: "chosen, and why", value: why, cell: (row) => el("td", { class: "why", title: why(row) }, why(row)) },
];
let sorted = { column: -1, down: false }, chosen = null;

function why(row) {
  const reason = row.reason || DATA.reasons?.[row.method] || "";
  return [row.method, reason].filter(Boolean).join(": ");
}
const shareOf = (row, amax) => (largest(row) > 0 && isNumber(amax) ? amax / largest(row) : null);

function strip(row) {
  // Where the methods' ranges lie between 0 and the largest magnitude; the one in use is the tall tick.
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = (x, y1, y2, stroke, width) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ x1: x, x2: x, y1, y2, "stroke-width": width })) made.setAttribute(name, value);
    made.style.stroke = stroke;
    svg.append(made);
  };
  svg.setAttribute("viewBox", "0 0 112 16"); svg.setAttribute("width", 112); svg.setAttribute("height", 16); svg.setAttribute("aria-hidden", "true");
  const base = document.createElementNS("http://www.w3.org/2000/svg", "path");
  base.setAttribute("d", "M2 8H102"); base.style.stroke = "var(--bars)";
  svg.append(base);
  METHODS.forEach((method, i) => {
    const share = shareOf(row, own(row).ranges?.[method]);
    if (share !== null) line(2 + 100 * Math.min(share, 1.08), 4, 12, `var(--m${i % 8})`, 2);
  });
  const used = shareOf(row, row.amax);
  if (used !== null) line(2 + 100 * Math.min(used, 1.08), 0, 16, "var(--ink)", 1.2);
  return svg;
}

function visible() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), kind = $("kind").value;
  const rows = TENSORS.filter((row) => {
    const text = `${row.name} ${row.kind} ${why(row)}`.toLowerCase();
    return words.every((word) => text.includes(word)) && (!kind || row.kind === kind)
      && (!$("int8-only").checked || row.quantized) && (!$("no-copies").checked || !row.same_as);
  });
  if (sorted.column < 0) return rows;
  const { value } = COLUMNS[sorted.column], sign = sorted.down ? -1 : 1;
  const missing = (x) => x === null || x === undefined || x === "";
  return rows.map((row) => [value(row), row]).sort(([a], [b]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b); // what is not known stands last, either way
    return sign * (isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  }).map(([, row]) => row);
}

function fillHead() {
  const cells = COLUMNS.map((column, i) => {
    const button = el("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      const same = sorted.column === i;
      sorted = { column: i, down: same ? !sorted.down : false };
      fillBody();
    });
    // On paper the title stands without its button: no browser repeats a heading with controls on every page.
    return el("th", { scope: "col", class: column.numeric ? "n" : "" }, button, el("span", { class: "paper" }, column.title));
  });
  $("tensor-table").tHead.replaceChildren(el("tr", {}, ...cells));
}

function fillBody() {
  const rows = visible();
  const made = rows.map((row) => {
    const cells = COLUMNS.map((column) => column.cell?.(row)
      ?? el("td", { class: column.numeric ? "n" : "" }, column.numeric ? number(column.value(row)) : column.value(row) ?? ""));
    const tr = el("tr", { tabindex: "0", "data-name": row.name }, ...cells);
    tr.addEventListener("click", () => choose(row));
    return tr;
  });
  $("tensor-table").tBodies[0].replaceChildren(...made);
  [...$("tensor-table").tHead.rows[0].cells].forEach((cell, i) => {
    if (i === sorted.column) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending"); else cell.removeAttribute("aria-sort");
  });
  $("count").textContent = `${rows.length} of ${TENSORS.length} tensors`;
  mark();
}

function mark() {
  for (const tr of $("tensor-table").tBodies[0].rows) tr.classList.toggle("on", tr.dataset.name === chosen?.name);
}

function choose(row) {
  chosen = row;
  const source = own(row);
  $("chosen").textContent = row.name;
  $("methods").tBodies[0].replaceChildren(...METHODS.map((method, i) => {
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    swatch.setAttribute("width", 26); swatch.setAttribute("height", 8);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", "M0 4H26"); path.style.stroke = `var(--m${i % 8})`; path.style.strokeWidth = 2.5;
    path.setAttribute("stroke-dasharray", { solid: "none", dash: "7 3", dot: "2 3", dashdot: "7 3 2 3", longdash: "10 3", longdashdot: "10 3 2 3" }[DASHES[i % DASHES.length]]);
    swatch.append(path);
    const share = shareOf(row, source.ranges?.[method]), used = row.method === method;
    return el("tr", {}, el("td", {}, swatch), el("td", { class: used ? "used" : "" }, used ? `${method} (used)` : method), el("td", { class: "n" }, number(source.ranges?.[method])),
      el("td", { class: "n" }, share === null ? "–" : `${(100 * share).toFixed(1)} %`), el("td", { class: "n" }, number(source.sqnr_by_method?.[method], 3)));
  }));
  const facts = [["used", `${number(row.amax)}, ${why(row)}`], ["values", isNumber(source.values) ? source.values.toLocaleString("en") : "–"],
    ["low, high", `${number(row.minimum)}, ${number(row.maximum)}`], ["zeros", isNumber(source.values) && source.values ? `${(100 * source.zeros / source.values).toFixed(2)} %` : "–"]];
  if (source.masked) facts.push(["set apart", `${source.masked.toLocaleString("en")} mask logits`]);
  if (row.same_as) facts.push(["values of", row.same_as]);
  $("facts").replaceChildren(...facts.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]));
  mark();
  chart("chart-tensor", tensorChart);
}

function ticks(loss) {
  // Distance of a logarithmic axis' ticks: whole decades, or 1, 2 and 5 where there is hardly more than one.
  const shown = (loss || []).filter((y) => isNumber(y) && y > 0);
  const decades = shown.length ? Math.log10(Math.max(...shown) / Math.min(...shown)) : 0;
  return decades < 1.5 ? "D2" : Math.ceil(decades / 5);
}

function tensorChart() {
  const row = own(chosen), linear = $("linear").checked, bins = row.bins, data = [];
  const ranges = METHODS.filter((method) => isNumber(row.ranges?.[method]));
  const end = 1.04 * Math.max(largest(chosen), chosen.amax ?? 0, ...ranges.map((method) => row.ranges[method]));
  if (bins) {
    const width = bins.width, x = bins.counts.map((_, i) => (i + 0.5) * width);
    data.push({ type: "bar", x, y: bins.counts, width, marker: { color: colour("bars"), line: { width: 0 } },
      hovertemplate: `|x| about %{x:.4g}: %{y:,} values<extra></extra>` });
  }
  const kinds = [["kl", "entropy", "KL, nats", "y2"], ["mse", "mse", "MSE", "y3"]];
  for (const [kind, method, title, axis] of kinds) {
    const curve = row.curves?.[kind];
    if (!curve) continue;
    const loss = curve.loss.map((y) => (isNumber(y) && y > 0 ? y : null));
    data.push({ type: "scatter", mode: "lines", x: curve.at, y: loss, yaxis: axis, line: { color: methodColour(method), width: 2 },
      hovertemplate: `range %{x:.4g}: ${title} %{y:.4g}<extra></extra>` });
  }
  const curves = kinds.some(([kind]) => row.curves?.[kind]), low = curves ? 0.44 : 0;
  const shapes = [...ranges].sort((a, b) => (a === chosen.method) - (b === chosen.method)).map((method) => ({ type: "line", xref: "x", yref: "paper", x0: row.ranges[method], x1: row.ranges[method], y0: 0, y1: 1,
    line: { color: methodColour(method), width: method === chosen.method ? 2.6 : 1.6, dash: methodDash(method) } }));
  const annotations = bins ? [] : [{ text: "no histogram of this tensor is at hand", xref: "paper", yref: "paper", x: 0.5, y: (1 + low) / 2, showarrow: false, font: { color: colour("soft") } }];
  const log = (method) => ({ type: "log", dtick: ticks(row.curves?.[method]?.loss), exponentformat: "power", showgrid: false });
  return { data, layout: { shapes, annotations, bargap: 0, margin: { l: 60, r: curves ? 62 : 14, t: 8, b: 38 },
    xaxis: { title: { text: "|x|, and range (clipping threshold)" }, range: [0, end || 1], anchor: curves ? "y2" : "y" },
    yaxis: { domain: [low + (curves ? 0.05 : 0), 1], title: { text: "values" }, type: linear ? "linear" : "log", nticks: 5, exponentformat: "power" },
    yaxis2: { ...log("kl"), domain: [0, low], title: { text: "KL", font: { color: methodColour("entropy") } }, visible: curves },
    yaxis3: { ...log("mse"), overlaying: "y2", side: "right", title: { text: "MSE", font: { color: methodColour("mse") } }, visible: curves },
  } };
}

chart("chart-overview", () => {
  const rows = TENSORS.filter((row) => !row.same_as && isNumber(row.sqnr_db));
  if (!rows.length) return null;
  const groups = [[false, "circle", "soft", "stays in float"], [true, "diamond", "c-int8", "feeds an INT8 product"]];
  const data = groups.map(([quantized, symbol, shade, name]) => {
    const own = rows.map((row, i) => [row, i]).filter(([row]) => Boolean(row.quantized) === quantized);
    return { name, type: "scatter", mode: "markers", x: own.map(([, i]) => i + 1), y: own.map(([row]) => row.sqnr_db), customdata: own.map(([row]) => TENSORS.indexOf(row)),
      text: own.map(([row]) => plain(row.name)), marker: { color: colour(shade), symbol, size: quantized ? 9 : 6 }, hovertemplate: "%{text}<br>%{y:.1f} dB<extra></extra>" };
  }).filter((trace) => trace.x.length);
  return { data, layout: { margin: { l: 50, r: 14, t: 26, b: 34 }, showlegend: true, legend: { orientation: "h", y: 1.2, x: 0 },
    xaxis: { title: { text: "tensor, in the network's order" }, showgrid: false, zeroline: false }, yaxis: { title: { text: "SQNR, dB" } } } };
});

if ($("tensors")) {
  const kinds = [...new Set(TENSORS.map((row) => row.kind).filter(Boolean))].sort();
  $("kind").append(...kinds.map((kind) => el("option", { value: kind }, kind)));
  fillHead();
  fillBody();
  for (const id of ["filter", "kind", "int8-only", "no-copies"]) $(id).addEventListener("input", fillBody);
  $("linear").addEventListener("input", () => draw("chart-tensor"));
  $("tensor-table").tBodies[0].addEventListener("keydown", (event) => {
    const row = event.target.closest("tr"), to = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Enter: row }[event.key];
    if (!to) return;
    event.preventDefault();
    to.focus();
    choose(BY_NAME.get(to.dataset.name));
  });
  if (charts.has("chart-overview") && $("chart-overview").on) {
    $("chart-overview").on("plotly_click", (event) => choose(TENSORS[event.points[0].customdata]));
  }
  // The least well kept tensor that feeds an INT8 product is the one worth a look first.
  const known = TENSORS.filter((row) => !row.same_as && isNumber(row.sqnr_db));
  const first = known.filter((row) => row.quantized).sort((a, b) => a.sqnr_db - b.sqnr_db)[0] || known[0] || TENSORS[0];
  if (first) choose(first);
}
