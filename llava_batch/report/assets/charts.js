// Charts: histograms and the curve of the speed, drawn as SVG at the size that they are shown in.

const MARGIN = { top: 20, right: 8, bottom: 22, left: 40 };

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function short(value) {
  return new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: Math.abs(value) >= 1e4 ? "compact" : "standard" }).format(value);
}

// Round steps that cut `span` into at most `most` parts.
function step(span, most) {
  const rough = span / most || 1, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.9999);
}

function ticks(low, high, most) {
  const by = step(high - low, most), found = [];
  for (let i = Math.ceil(low / by - 1e-9); i * by <= high + by * 1e-6; i++) found.push(i * by || 0); // never minus zero
  return found;
}

// An empty chart with its axes; `x` and `y` map values to places.
function frame(host, label, low, high, top, formatX, formatY, above = MARGIN.top) {
  const width = host.clientWidth, height = host.clientHeight;
  const x = (v) => MARGIN.left + ((v - low) / (high - low || 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (v) => height - MARGIN.bottom - (v / (top || 1)) * (height - above - MARGIN.bottom);
  const root = svg("svg", { role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}` });
  for (const v of ticks(0, top, 4)) {
    root.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(v), y2: y(v) }));
    if (v) root.append(svg("text", { x: MARGIN.left - 8, y: y(v) + 4, "text-anchor": "end" }, formatY(v)));
  }
  for (const v of ticks(low, high, Math.max(2, Math.floor(width / 80))))
    root.append(svg("text", { x: x(v), y: height - 5, "text-anchor": "middle" }, formatX(v)));
  return { root, x, y };
}

// `data`: start, width, open_below, and for each side its bars and median; null where nothing is known.
function histogram(host, data, names, what) {
  if (!data) return host.replaceChildren(el("p", { className: "nothing" }, "Nothing recorded."));
  const known = data.series.filter(Boolean);
  const totals = data.series.map((s) => (s ? s.bars.reduce((a, b) => a + b, 0) : 0));
  const share = known.length > 1;
  const height = (side, i) => (data.series[side] ? data.series[side].bars[i] / (share ? totals[side] : 1) : 0);
  const size = known[0].bars.length, end = data.start + size * data.width;
  const top = Math.max(...data.series.flatMap((s, side) => (s ? s.bars.map((_, i) => height(side, i)) : [0])));
  const formatY = share ? (v) => `${short(v * 100)} %` : short;
  const label = `${what}: ` + data.series.map((s, i) => (s ? `${names[i]}, median ${short(s.median)}` : "")).join("; ");
  const { root, x, y } = frame(host, label, data.start, end, top, short, formatY, MARGIN.top * known.length);
  for (let i = 0; i < size; i++) {
    const from = data.start + i * data.width, to = from + data.width;
    const range = i === 0 && data.open_below ? `below ${short(to)}` : data.whole && data.width === 1 ? short(from) : `${short(from)} to ${short(data.whole ? to - 1 : to)}`;
    const group = svg("g", {}, svg("title", {}, `${range}: ` + data.series.map((s, side) => (s ? `${names.length > 1 ? names[side] + " " : ""}${s.bars[i].toLocaleString("en")}` : "")).filter(Boolean).join(", ")));
    data.series.forEach((s, side) => {
      if (!s || !s.bars[i]) return;
      const tall = Math.max(1, y(0) - y(height(side, i)));
      group.append(svg("rect", { class: `bar fill-${side}${share ? " shared" : ""}`, x: x(from) + 0.5, width: Math.max(0.5, x(to) - x(from) - 1), y: y(0) - tall, height: tall }));
    });
    group.append(svg("rect", { class: "hit", x: x(from), width: x(to) - x(from), y: y(top), height: y(0) - y(top) }));
    root.append(group);
  }
  data.series.forEach((s, side) => {
    if (!s) return;
    const at = Math.min(x(s.median + (data.whole ? 0.5 : 0)), x(end));
    const late = at > host.clientWidth * 0.72;
    root.append(
      svg("line", { class: `median line-${side}`, x1: at, x2: at, y1: 3 + side * 15, y2: y(0) }),
      svg("text", { x: at + (late ? -5 : 5), y: 12 + side * 15, "text-anchor": late ? "end" : "start" }, `${share ? names[side] + " " : ""}median ${short(s.median)}`));
  });
  return host.replaceChildren(root);
}

function clock(seconds) {
  if (seconds < 120) return `${short(seconds)} s`;
  return seconds < 7200 ? `${short(seconds / 60)} min` : `${short(seconds / 3600)} h`;
}

// `series`: for each side its [seconds, images/s] points.
function curve(host, series, names) {
  const points = series.flat();
  if (!points.length) return host.replaceChildren(el("p", { className: "nothing" }, "Not recorded."));
  const end = Math.max(...points.map((p) => p[0])), top = Math.max(...points.map((p) => p[1]));
  const unit = end < 120 ? 1 : end < 7200 ? 60 : 3600, name = { 1: "s", 60: "min", 3600: "h" }[unit];
  const label = `Images/s over ${clock(end)}: ` + names.join(" and ");
  const { root, x, y } = frame(host, label, 0, end / unit, top, (v) => `${short(v)} ${name}`, short);
  series.forEach((line, side) => {
    if (!line.length) return;
    const path = [[0, line[0][1]], ...line].map(([t, rate], i) => `${i ? "L" : "M"}${x(t / unit).toFixed(1)} ${y(rate).toFixed(1)}`).join("");
    root.append(
      svg("path", { class: `area fill-${side}`, d: `${path}L${x(line.at(-1)[0] / unit)} ${y(0)}L${x(0)} ${y(0)}Z` }),
      svg("path", { class: `curve line-${side}`, d: path }));
  });
  return host.replaceChildren(root);
}
