"use strict";
// Accuracy, latency, and one against the other.
const RAN = (DATA.engines || []).filter((row) => row.status === "ok");
const METRICS = DATA.metrics || [];

chart("chart-accuracy", () => {
  const rows = RAN.filter((row) => METRICS.some((name) => isNumber(row.metrics[name]?.value)));
  if (!rows.length) return null;
  const several = METRICS.length > 1;
  const data = METRICS.map((name, i) => ({
    name: plain(name), type: "scatter", mode: "markers",
    x: rows.map((_, j) => j + (i - (METRICS.length - 1) / 2) * 0.16),
    y: rows.map((row) => row.metrics[name]?.value ?? null),
    error_y: { type: "data", array: rows.map((row) => row.metrics[name]?.stderr ?? 0), thickness: 1.6, width: 5, color: several ? undefined : colour("soft") },
    marker: { size: 11, symbol: several ? i : rows.map((row) => precisionMark(row.precision)),
      color: several ? colour(`m${(i + 1) % 8}`) : rows.map((row) => precisionColour(row.precision)) },
    hovertemplate: `%{customdata}<br>${plain(name)} %{y:.4f} ± %{error_y.array:.4f}<extra></extra>`,
    customdata: rows.map((row) => plain(row.label)),
  }));
  return { data, layout: {
    xaxis: { tickvals: rows.map((_, j) => j), ticktext: rows.map((row) => plain(row.label)), range: [-0.6, rows.length - 0.4], showgrid: false },
    yaxis: { title: { text: several ? "" : plain(METRICS[0]) }, nticks: 7 },
    showlegend: several, legend: { orientation: "h", y: 1.12 } } };
});

chart("chart-latency", () => {
  const rows = RAN.filter((row) => isNumber(row.latency.median)).reverse();
  if (!rows.length) return null;
  return { data: [{
    type: "bar", orientation: "h", y: rows.map((_, i) => i), x: rows.map((row) => row.latency.median),
    marker: { color: rows.map((row) => precisionColour(row.precision)), opacity: 0.85 },
    error_x: { type: "data", symmetric: false, array: rows.map((row) => Math.max(0, (row.latency.p99 ?? row.latency.median) - row.latency.median)),
      arrayminus: rows.map(() => 0), color: colour("ink"), thickness: 1.6, width: 5 },
    customdata: rows.map((row) => [row.latency.p90, row.latency.p99, plain(row.label)]),
    hovertemplate: "%{customdata[2]}<br>median %{x:.2f} ms, p90 %{customdata[0]:.2f}, p99 %{customdata[1]:.2f}<extra></extra>",
  }], layout: { xaxis: { title: { text: "ms a batch" }, rangemode: "tozero" }, bargap: 0.4,
    yaxis: { showgrid: false, tickvals: rows.map((_, i) => i), range: [-0.6, rows.length - 0.4], ticktext: rows.map((row) =>
      `<b>${plain(row.label)}</b><br>${number(row.latency.median, 3)} ms${isNumber(row.speedup) ? `, ${row.speedup.toFixed(2)}x` : ""}`) } } };
});

chart("chart-front", () => {
  const name = METRICS[0];
  const rows = RAN.filter((row) => isNumber(row.latency.median) && isNumber(row.metrics[name]?.value));
  if (!rows.length) return null;
  const front = rows.filter((row) => row.front).sort((a, b) => a.latency.median - b.latency.median);
  const fastest = Math.min(...rows.map((row) => row.latency.median));
  const data = [{
    type: "scatter", mode: "lines", x: front.map((row) => row.latency.median), y: front.map((row) => row.metrics[name].value),
    line: { color: colour("accent"), width: 2, dash: "dot", shape: "hv" }, hoverinfo: "skip",
  }, {
    type: "scatter", mode: "markers+text", x: rows.map((row) => row.latency.median), y: rows.map((row) => row.metrics[name].value),
    error_y: { type: "data", array: rows.map((row) => row.metrics[name].stderr ?? 0), color: colour("soft"), thickness: 1.2, width: 4 },
    marker: { size: 12, symbol: rows.map((row) => precisionMark(row.precision)), color: rows.map((row) => precisionColour(row.precision)),
      line: { width: rows.map((row) => (row.front ? 2 : 0)), color: colour("ink") } },
    // The fastest has free space on its left, where no other's mark can lie under its name.
    text: rows.map((row) => plain(row.label)), textposition: rows.map((row) => (row.latency.median === fastest ? "top left" : "top right")), cliponaxis: false,
    hovertemplate: `%{text}<br>%{x:.2f} ms, ${plain(name)} %{y:.4f}<extra></extra>`,
  }];
  const slowest = Math.max(...rows.map((row) => row.latency.median));
  return { data, layout: { margin: { l: 50, r: 34, t: 22, b: 42 },
    xaxis: { title: { text: "ms a batch (median)" }, range: [0, slowest * 1.15] }, yaxis: { title: { text: plain(name) }, nticks: 7 } } };
});

chart("chart-sensitivity", () => {
  const rows = (DATA.sensitivity || []).filter((part) => isNumber(part.db) && isNumber(part.layer));
  if (!rows.length) return null;
  const groups = [...new Set(rows.map((part) => part.group))].sort();
  const data = groups.map((group, i) => {
    const own = rows.filter((part) => part.group === group).sort((a, b) => a.layer - b.layer);
    return {
      name: plain(group), type: "scatter", mode: "lines+markers", x: own.map((part) => part.layer), y: own.map((part) => part.db),
      line: { color: colour(`m${(i + 1) % 8}`), width: 1.6, dash: DASHES[i % DASHES.length] }, marker: { size: 9, symbol: i },
      customdata: own.map((part) => [plain(part.name), part.cost, part.saved]),
      hovertemplate: "%{customdata[0]}<br>%{y:.1f} dB, %{customdata[1]} points, saves %{customdata[2]} ms<extra></extra>",
    };
  });
  return { data, layout: { xaxis: { title: { text: "layer" }, dtick: 1 }, yaxis: { title: { text: "dB, this part alone in INT8" }, nticks: 8 },
    showlegend: true, legend: { orientation: "h", y: 1.12 } } };
});
