/** Colours that stay apart for most kinds of colour vision, on light and on dark ground. */
const HUES = ["#0b8a84", "#d1495b", "#3d6fd6", "#d18f00", "#7b4bc4", "#3d9a3d", "#c4559e", "#7d6b5d", "#00a3d7", "#98a000", "#8f2f2f", "#4f7f9f"];
const DASHES = ["solid", "dash", "dot"];
const paint = (number) => HUES[number % HUES.length];
const dash = (number) => DASHES[Math.floor(number / HUES.length) % DASHES.length];

const words = {
  hypervolume: "Hypervolume of what was found.",
  regret: "Share of the reference front's hypervolume that is missing.",
  igd_plus: "How far the reference front is from the points found, counting only what they lack.",
  r2: "Mean over preferences of the best weighted distance to the ideal.",
  pc_entropy: "How evenly the found front covers the reference front.",
  diversity: "Mean distance among the ten best for each preference.",
  front_share: "Share of the reference front's objects that were found.",
  entropy: "Mean of -log p of the sampled trajectories.",
};
const digits = (value, n = 4) => {
  if (value === null) return "–";
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 ? value.toExponential(1) : Math.abs(value) < 1000 ? value.toPrecision(n) : format(value);
};
const label = (metric) => metric.replaceAll("_", " ");

const view = { problem: null, metric: null, axis: "calls", sorted: 0 };
const color = (name) => view.problem.colors[view.problem.contestants.indexOf(name)];
const rgba = (hex, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;

function drawTable() {
  const { table, reference, budget } = view.problem;
  const kind = reference.exact ? "The exact front" : "The best front known, of all runs together,";
  at("table-lead").textContent = `${format(budget)} oracle calls. ${kind} has ${format(reference.objects)} `
    + `objects and hypervolume ${format(reference.volume)}.`;
  const heads = table.columns.map((column, i) => {
    const button = make("button", { type: "button", title: words[column] ?? "" }, label(column));
    button.addEventListener("click", () => { view.sorted = i; drawTable(); });
    return make("th", { className: "number", scope: "col", "aria-sort": i === view.sorted ? "descending" : "none" },
      button, make("small", {}, column === "seconds" ? "" : table.lower[i] ? " ↓" : " ↑"));
  });
  const by = view.sorted, sign = table.lower[by] ? 1 : -1;
  const known = (row) => row.values[by][0] ?? sign * Infinity;
  const rows = [...table.rows].sort((a, b) => sign * (known(a) - known(b)));
  const body = rows.map((row) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = paint(color(row.name));
    return make("tr", {}, make("th", { scope: "row" }, swatch, row.name),
      ...row.values.map(([mean, low, high], i) => make("td", { className: row.best[i] ? "number best" : "number" },
        digits(mean), mean === null ? null : make("small", {}, `${digits(low, 3)} to ${digits(high, 3)}`))));
  });
  at("table").replaceChildren(make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "method"), ...heads)),
    make("tbody", {}, ...body));
}

function drawCurves() {
  const { curves, contestants } = view.problem;
  at("curve-note").textContent = words[view.metric] ?? "";
  return chart("curve-plot", (page) => {
    const traces = [];
    for (const name of contestants) {
      const band = curves[name]?.[view.metric]?.[view.axis];
      if (!band || !band.x.length) continue;
      const hue = paint(color(name)), shared = { legendgroup: name };
      traces.push({
        ...shared, type: "scatter", mode: "lines", x: [...band.x, ...[...band.x].reverse()],
        y: [...band.high, ...[...band.low].reverse()], fill: "toself", fillcolor: rgba(hue, 0.13),
        line: { width: 0 }, hoverinfo: "skip", showlegend: false,
      }, {
        ...shared, type: "scatter", mode: band.x.length > 1 ? "lines" : "markers", name, x: band.x, y: band.mean,
        line: { color: hue, width: 2.2, dash: dash(color(name)) }, marker: { color: hue },
        hovertemplate: `${name}: %{y:.4g}<extra></extra>`,
      });
    }
    const calls = view.axis === "calls";
    const direction = view.problem.lower.includes(view.metric) ? ", lower is better" : "";
    return [traces, {
      modebar: toolbar(page), hovermode: "x unified", dragmode: "pan", showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 56, r: 12, t: 62, b: 48 },
      xaxis: axis(calls ? "oracle calls" : "CPU seconds", calls ? { tickformat: ",", rangemode: "tozero" } : { type: "log" }),
      yaxis: axis(label(view.metric) + direction, view.metric === "regret" ? { type: "log" } : {}),
    }];
  });
}

function drawFronts() {
  const { fronts, rewards, reference } = view.problem;
  at("front-section").hidden = rewards.length < 2;
  if (rewards.length < 2) return Promise.resolve();
  const several = rewards.length > 2 ? `, seen along ${rewards[0]} and ${rewards[1]}` : "";
  at("front-lead").textContent = `Non-dominated reward vectors of each method's first seed${several}.`;
  return chart("front-plot", (page) => {
    const cloud = (name, rows, marker) => ({
      type: "scatter", mode: "markers", name, x: rows.map((row) => row[0]), y: rows.map((row) => row[1]), marker,
      hovertemplate: `${name}: %{x:.3g}, %{y:.3g}<extra></extra>`,
    });
    const known = reference.exact ? "exact front" : "best known front";
    const traces = [cloud(known, reference.front, { color: page.faint, size: 11, symbol: "circle-open", line: { width: 1.5, color: page.faint } })];
    for (const [name, rows] of Object.entries(fronts)) {
      traces.push(cloud(name, rows, { color: paint(color(name)), size: 6.5, opacity: 0.8 }));
    }
    return [traces, {
      modebar: toolbar(page), hovermode: "closest", dragmode: "pan", showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 56, r: 12, t: 62, b: 48 },
      xaxis: axis(`${rewards[0]}, higher is better`), yaxis: axis(`${rewards[1]}, higher is better`),
    }];
  });
}

/** Everything that depends on the chosen problem. */
function show(number) {
  view.problem = report.problems[number];
  view.sorted = 0;
  const { metrics } = view.problem;
  if (!metrics.includes(view.metric)) view.metric = metrics[0];
  const pick = make("select", {}, ...metrics.map((metric) => make("option", { value: metric }, label(metric))));
  pick.value = view.metric;
  pick.addEventListener("change", () => { view.metric = pick.value; drawCurves(); });
  const axes = chooser("Against", ["oracle calls", "seconds"], view.axis === "calls" ? 0 : 1,
    (i) => { view.axis = ["calls", "seconds"][i]; drawCurves(); });
  at("curve-tools").replaceChildren(make("label", {}, "Metric", pick), axes);
  drawTable();
  return Promise.all([drawCurves(), drawFronts()]);
}

async function main() {
  at("subtitle").textContent = report.about;
  facts("headline", report.headline);
  const names = report.problems.map((problem) => problem.name);
  if (names.length > 1) at("problem-tools").append(chooser("Problem", names, 0, show));
  at("skipped").append(...report.skipped.map((sentence) => make("li", {}, sentence)));
  at("skipped-section").hidden = !report.skipped.length;
  if (names.length) await show(0);
  finish();
}

main();
