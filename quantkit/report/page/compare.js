"use strict";
// Change and speed of every cell; a colour and a mark a method, a chart column a task.
const CELLS = DATA.cells, SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "cross", "hexagon"];
const several = DATA.backends.length > 1;
const where = (cell) => plain(several ? `${cell.task}, ${cell.backend}` : cell.task);
const columns = [...new Set(CELLS.map(where))];

function traces(x, y, extra) {
  return DATA.methods.map((method, i) => {
    const own = CELLS.filter((cell) => cell.method === method && isNumber(x(cell, i)) && isNumber(y(cell, i)));
    return { name: plain(method), type: "scatter", mode: "markers", x: own.map((cell) => x(cell, i)), y: own.map((cell) => y(cell, i)),
      marker: { color: colour(`m${i % 8}`), symbol: SYMBOLS[i % SYMBOLS.length], size: 10 }, customdata: own.map(where), ...extra(own) };
  }).filter((trace) => trace.x.length);
}

const points = (x) => (isNumber(x) ? 100 * x : null);
const bars = (own) => ({ error_y: { type: "data", array: own.map((cell) => points(cell.stderr) ?? 0), color: colour("soft"), thickness: 1.2, width: 3 } });
const legend = { showlegend: true, legend: { orientation: "h", y: 1.14 } };

chart("chart-change", () => {
  const spread = (i) => (i - (DATA.methods.length - 1) / 2) * 0.11;
  const data = traces((cell, i) => columns.indexOf(where(cell)) + spread(i), (cell) => points(cell.change), (own) => ({ ...bars(own),
    hovertemplate: "%{customdata}<br>%{y:+.2f} points<extra>%{fullData.name}</extra>" }));
  if (!data.length) return null;
  return { data, layout: { ...legend, xaxis: { tickvals: columns.map((_, i) => i), ticktext: columns.map((name) => name.replace(", ", "<br>")), showgrid: false, zeroline: false, range: [-0.6, columns.length - 0.4] },
    yaxis: { title: { text: "points against FP32" }, zerolinecolor: colour("soft") } } };
});

chart("chart-speed", () => {
  const data = traces((cell) => cell.speedup, (cell) => points(cell.change), (own) => ({ ...bars(own),
    hovertemplate: "%{customdata}<br>%{x:.2f}x, %{y:+.2f} points<extra>%{fullData.name}</extra>" }));
  if (!data.length) return null;
  return { data, layout: { ...legend, xaxis: { title: { text: "times FP32's speed" }, zeroline: false }, yaxis: { title: { text: "points against FP32" }, zerolinecolor: colour("soft") } } };
});
