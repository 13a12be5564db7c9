// Hands the page's data to uPlot. Colours are read at every drawing, so they follow the theme.
"use strict";
const data = JSON.parse(document.getElementById("plots").textContent);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const digits = (v) => v == null ? "–" : Math.abs(v) >= 1e5 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2) : String(+v.toPrecision(4));
const forms = {
  plain: digits, log: digits,
  percent: (v) => v == null ? "–" : (100 * v).toFixed(2) + " %",
  count: (v) => v == null ? "–" : Math.round(v).toLocaleString("en"),
};
const ticks = {
  plain: digits, count: forms.count, log: digits,
  percent: (v) => +(100 * v).toFixed(4) + " %",
};
// uPlot's scales, but shares end at 0 and 1, and a curve that stays 0 is not shown up to 100.
const linear = (u, min, max) => min == null ? [null, null] : min || max ? uPlot.rangeNum(min, max, 0.1, true) : [0, 1];
const scales = {
  plain: { range: linear }, count: { range: linear }, log: { distr: 3 },
  percent: { range: (...all) => linear(...all).map((v) => v == null ? v : Math.min(1, Math.max(0, v))) },
};
const several = document.querySelectorAll(".runs tbody tr").length > 1;
const strokes = { "train": "--train", "test": "--test", "test, EMA weights": "--ema" };
const dashes = { "train": [2, 3], "test": [], "test, EMA weights": [7, 3] };
const plots = [];

const axis = (more) => ({ stroke: () => css("--soft"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line"), size: 4, width: 1 }, font: "11px system-ui, sans-serif", ...more });
const stepAxis = axis({ values: (u, vs) => vs.map((v) => v == null || v % 1 ? "" : v >= 1e4 ? v / 1e3 + "k" : v), space: 60, size: 28 });
const stepLegend = { label: "step", value: (u, v) => v == null ? "–" : v.toLocaleString("en") };

function show(box, head, unit, options, values) {
  const figure = document.createElement("div");
  figure.className = "plot";
  const title = document.createElement("h4"), span = document.createElement("span");
  title.append(head + " ", span);
  span.textContent = unit;
  figure.append(title);
  box.append(figure);
  const u = new uPlot({ width: figure.clientWidth, legend: { live: true }, padding: [10, 8, 0, 0], ...options }, values, figure);
  u.root.tabIndex = 0;
  u.root.setAttribute("role", "group");
  u.root.setAttribute("aria-label", head + ", " + unit + ": arrow keys show values, plus and minus zoom, 0 shows all steps");
  u.root.addEventListener("keydown", (event) => press(u, event));
  new ResizeObserver(() => u.setSize({ width: figure.clientWidth, height: options.height })).observe(figure);
  plots.push(u);
  return figure;
}

function press(u, event) {
  const xs = u.data[0], last = xs.length - 1, { min, max } = u.scales.x;
  const at = u.cursor.idx ?? 0, middle = u.cursor.idx == null ? (min + max) / 2 : xs[at];
  const go = (i) => u.setCursor({ left: u.valToPos(xs[Math.max(0, Math.min(last, i))], "x"), top: u.cursor.top >= 0 ? u.cursor.top : 10 }, true, true);
  const up = (d) => u.setCursor({ left: Math.max(u.cursor.left, 0), top: Math.max(0, Math.min(u.over.clientHeight - 1, u.cursor.top + d)) });
  const zoom = (f) => u.setScale("x", { min: Math.max(xs[0], middle - (middle - min) * f), max: Math.min(xs[last], middle + (max - middle) * f) });
  const keys = {
    ArrowRight: () => go(at + 1), ArrowLeft: () => go(at - 1), Home: () => go(0), End: () => go(last),
    ArrowUp: () => up(-6), ArrowDown: () => up(6),
    "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => u.setScale("x", { min: xs[0], max: xs[last] }),
  };
  if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); keys[event.key](); }
}

for (const chart of data.charts) {
  const dashed = several && new Set(chart.series.map((s) => s.kind)).size > 1;
  const series = chart.series.map((s) => ({
    label: s.label, value: (u, v) => forms[chart.form](v), width: dashed && s.kind == "train" ? 1 : 1.6, spanGaps: true,
    stroke: () => css(several ? "--run" + s.run : strokes[s.kind]), dash: dashed ? dashes[s.kind] : [],
    points: { show: s.values.filter((v) => v != null).length < 40, size: 4, fill: () => css(several ? "--run" + s.run : strokes[s.kind]) },
  }));
  const log = chart.form == "log" && chart.series.some((s) => s.values.some((v) => v > 0));
  show(document.getElementById("charts"), chart.title, chart.unit, {
    height: 230, cursor: { sync: { key: "steps" }, points: { size: 6 } },
    scales: { x: { time: false }, y: log || chart.form != "log" ? scales[chart.form] : scales.plain },
    axes: [stepAxis, axis({ size: 58, values: (u, vs) => vs.map((v) => v == null ? "" : ticks[chart.form](v)) })],
    series: [stepLegend, ...series],
  }, [chart.steps, ...chart.series.map((s) => log ? s.values.map((v) => v > 0 ? v : null) : s.values)]);
}

// A map of layers is a small picture with a pixel for each value, which uPlot stretches to its axes.
function paint(map) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [map.steps.length, map.names.length];
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const colour = css("--accent").split(",").map(Number), of = map.log ? Math.log : (v) => v;
  map.rows.forEach((row, y) => row.forEach((v, x) => {
    const share = v == null || (map.log && v <= 0) ? 0 : (of(v) - of(map.low)) / (of(map.high) - of(map.low));
    image.data.set([...colour, 255 * Math.max(0, Math.min(1, share))], 4 * (y * canvas.width + x));
  }));
  context.putImageData(image, 0, 0);
  return canvas;
}

for (const box of document.querySelectorAll(".maps")) for (const map of data.maps[box.dataset.run]) {
  const rows = map.names.length, steps = map.steps, row = (u) => Math.min(rows - 1, Math.max(0, Math.floor(u.posToVal(u.cursor.top, "y"))));
  const form = map.log ? digits : forms.percent;
  const starts = map.names.map((n, i) => [i, n.split("/")[0]]).filter(([i, n]) => !i || n.split("_conv")[0] != map.names[i - 1].split("/")[0].split("_conv")[0]);
  const height = Math.max(170, Math.min(420, 60 + 4 * rows));
  const apart = 13 * rows / (height - 60), labels = [];  // rows between two labels that can be read
  for (const [i, name] of starts) if (!labels.length || i - labels.at(-1)[0] >= apart) labels.push([i, name]);
  const edges = [steps[0] - (steps[1] - steps[0] || 1), ...steps];  // A column ends at its step.
  const figure = show(box, map.title, map.unit, {
    height, cursor: { sync: { key: "steps", scales: ["x", null] }, points: { show: false } },
    scales: { x: { time: false, range: (u, min, max) => [Math.max(min ?? edges[0], edges[0]), max ?? steps.at(-1)] }, y: { range: [0, rows], dir: -1 } },
    axes: [stepAxis, axis({ size: 92, grid: { show: false }, splits: () => labels.map(([i]) => i + 0.5), values: () => labels.map(([, name]) => name) })],
    series: [stepLegend, { label: "layer", show: true, paths: () => null, points: { show: false }, value: (u, v, s, i) => i == null || u.cursor.top < 0 ? "–" : map.names[row(u)] + ": " + form(map.rows[row(u)][i]) }],
    hooks: { draw: [(u) => {
      const { left, top, width, height } = u.bbox, { min, max } = u.scales.x, column = (x) => {
        const i = edges.findLastIndex((e) => e <= x), next = edges[i + 1];
        return i < 0 ? 0 : next == null ? steps.length : i + (x - edges[i]) / (next - edges[i]);
      };
      const from = column(min), to = column(max);
      u.ctx.save();
      u.ctx.imageSmoothingEnabled = false;
      u.ctx.drawImage(paint(map), from, 0, Math.max(to - from, 1e-3), rows, left, top, width, height);
      u.ctx.restore();
    }] },
  }, [steps, steps.map(() => rows / 2)]);
  const scale = document.createElement("div"), ramp = document.createElement("i");
  scale.className = "scale"; ramp.className = "ramp";
  scale.append(form(map.low), ramp, form(map.high) + (map.log ? ", logarithmic" : ""));
  figure.append(scale);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((u) => u.redraw(false)));
document.documentElement.dataset.plots = plots.length;
