/** Tables of the best diverse candidates, one for each preference. */
const best = {
  start() {
    const how = report.molecules ? ", leaving out those too similar to one further up" : "";
    at("best-lead").textContent =
      `Ranked by the weighted sum of the rewards, each scaled to its range${how}. `
      + "Choose a row to see where it lies.";
    const names = report.tables.map((table) => describe(table.preference));
    if (names.length > 1) at("best-tools").append(chooser("Preference", names, 0, (i) => this.show(i)));
    const save = make("button", { type: "button" }, "Save this table as CSV");
    save.addEventListener("click", () => this.save());
    at("best-tools").append(save);
    this.show(0);
    card.watchers.push((index) => this.highlight(index));
  },

  show(number) {
    this.table = report.tables[number];
    const { mean, n, rows, scores } = this.table;
    const means = () => report.rewards.map((reward, k) => `${reward.name} ${format(mean[k])}`);
    at("best-note").textContent = mean
      ? `The trained sampler was asked for ${format(n)} candidates; on average they have ${means().join(", ")}.`
      : "";
    const wanted = (reward) => make("th", { className: "number", scope: "col", title: reward.description },
      reward.name, reward.unit ? make("small", {}, reward.unit) : null);
    this.formats = report.rewards.map((_, k) => formatter(rows.map((index) => points.rewards[index][k])));
    this.formatScore = formatter(scores);
    const head = make("tr", {}, make("th", { className: "number", scope: "col" }, "#"),
      make("th", { scope: "col" }, report.molecules ? "Structure" : "Candidate"),
      report.molecules ? make("th", { scope: "col", className: "mono" }, "SMILES") : null,
      ...report.rewards.map(wanted), make("th", { className: "number", scope: "col" }, "Score"));
    const body = rows.map((index, i) => this.row(index, i + 1, scores[i]));
    at("best-table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
    this.highlight(card.pinned);
  },

  row(index, number, score) {
    const values = points.rewards[index];
    const text = report.molecules ? make("td", { className: "mono" },
      make("div", { className: "name" }, make("span", {}, points.text[index]), copyButton(points.text[index]))) : null;
    const row = make("tr", { tabIndex: 0 }, make("td", { className: "number" }, String(number)),
      make("td", {}, drawing(index)), text,
      ...values.map((value, k) => make("td", { className: "number" }, this.formats[k](value))),
      make("td", { className: "number" }, this.formatScore(score)));
    row.dataset.index = index;
    const choose = () => {
      card.pin(index);
      at("front").scrollIntoView();
    };
    row.addEventListener("click", choose);
    row.addEventListener("keydown", (event) => {
      if (event.target === row && event.key === "Enter") choose();
    });
    return row;
  },

  highlight(index) {
    for (const row of at("best-table").querySelectorAll("tbody tr")) {
      row.classList.toggle("chosen", Number(row.dataset.index) === index);
    }
  },

  save() {
    const quote = (value) => `"${String(value).replaceAll('"', '""')}"`;
    const head = [report.molecules ? "smiles" : "object", ...report.rewards.map((r) => r.name), "score"];
    const lines = this.table.rows.map((index, i) =>
      [quote(points.text[index]), ...points.rewards[index], this.table.scores[i]].join(","));
    const blob = new Blob([[head.map(quote).join(","), ...lines].join("\n") + "\n"], { type: "text/csv" });
    const link = make("a", { href: URL.createObjectURL(blob), download: "candidates.csv" });
    link.click();
    URL.revokeObjectURL(link.href);
  },
};

/** Whether the trained sampler does what it is asked: mean rewards for each preference. */
function drawControl() {
  const asked = report.tables.filter((table) => table.mean);
  if (asked.length < 2) return;
  const formats = report.rewards.map((_, k) => formatter(asked.map((table) => table.mean[k])));
  const rows = asked.map((table) => make("tr", {}, make("td", {}, describe(table.preference)),
    make("td", { className: "number" }, format(table.n)),
    ...table.mean.map((value, k) => make("td", { className: "number" }, formats[k](value)))));
  const names = ["candidates", ...report.rewards.map((reward) => `mean ${reward.name}`)];
  const head = make("tr", {}, make("th", { scope: "col" }, "Asked for"),
    ...names.map((name) => make("th", { className: "number", scope: "col" }, name)));
  at("control").append(make("h3", {}, "Does the trained sampler do what it is asked?"),
    make("div", { className: "scroll" },
      make("table", { className: "compact" }, make("thead", {}, head), make("tbody", {}, ...rows))));
}

/** Hypervolume over oracle calls, beside random assembly where it was run. */
function drawVolume() {
  const { run, baseline } = report.hypervolume;
  const box = report.rewards.map((r, k) => `${r.name} ${format(report.reference[k])}`).join(", ");
  at("search-lead").textContent =
    "Hypervolume: the share of all possible trade-offs that some candidate reaches or beats. Rewards are scaled "
    + `to their ranges; the reference point is the worst corner (${box}).`
    + (report.estimated ? " With this many objectives it is estimated from fixed random directions." : "");
  return chart("volume-plot", (color) => {
    const line = (curve, name, paint, dash) => ({
      type: "scatter", mode: "lines", name, x: curve.x, y: curve.y, line: { color: paint, width: 2.4, dash },
      hovertemplate: `${name}: %{y:.3f} after %{x:,} calls<extra></extra>`,
    });
    const traces = [line(run, "this run", color.accent, "solid")];
    if (baseline) traces.push(line(baseline, "random assembly", color.other, "dash"));
    const layout = {
      xaxis: axis("oracle calls", { tickformat: ",", rangemode: "tozero" }),
      yaxis: axis("hypervolume, higher is better"),
      showlegend: Boolean(baseline), legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 56, r: 12, t: 36, b: 48 },
    };
    return [traces, layout];
  });
}

/** Points by their first two coordinates: what training met, and what the trained sampler gives. */
function drawCloud() {
  if (!report.cloud) return at("cloud-plot").remove();
  const { training, sampler, axes } = report.cloud;
  const more = axes > 2 ? `, of ${axes} axes` : "";
  return chart("cloud-plot", (color) => {
    const dots = (points, name, paint, opacity) => ({
      type: "scattergl", mode: "markers", name, x: points.x, y: points.y,
      marker: { size: 4, color: paint, opacity }, hovertemplate: "%{x:.3f}, %{y:.3f}<extra></extra>",
    });
    const traces = [dots(training, "met in training", color.other, 0.35), dots(sampler, "trained sampler", color.accent, 0.9)];
    return [traces, {
      xaxis: axis(`first coordinate${more}`, {}), yaxis: axis("second coordinate", { scaleanchor: "x" }),
      showlegend: true, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 56, r: 12, t: 36, b: 48 },
    }];
  });
}

/** One small chart for each metric. */
function drawCurves() {
  if (!report.curves.length) at("curves").append(make("p", { className: "empty" }, "Nothing was logged."));
  return Promise.all(report.curves.map((curve, i) => {
    const id = `curve-${i}`;
    const title = curve.name.replaceAll("_", " ");
    at("curves").append(make("div", {}, make("h3", {}, title), make("div", { id, className: "plot" })));
    const positive = curve.y.every((value) => value > 0);
    const wide = positive && Math.max(...curve.y) > 100 * Math.min(...curve.y);
    return chart(id, (color) => [
      [{
        type: "scatter", mode: "lines", x: curve.x, y: curve.y, line: { color: color.accent, width: 1.7 },
        hovertemplate: `${report.counted} %{x:,}: %{y:.4g}<extra></extra>`,
      }],
      {
        margin: { l: 50, r: 8, t: 4, b: 38 },
        xaxis: axis(report.counted, { tickformat: "," }), yaxis: axis("", wide ? { type: "log", dtick: 1 } : { nticks: 6 }),
      },
    ]);
  }));
}

/** The run's card: objectives, prose, settings. */
function fillCard() {
  const range = (reward) => `${format(reward.low)} to ${format(reward.high)}`;
  const seen = (reward) => `${format(reward.seen[0])} to ${format(reward.seen[1])}`;
  const cells = (tag, values) => make("tr", {}, ...values.map((value) => make(tag, {}, value)));
  const rows = report.rewards.map((reward) => cells("td", [
    reward.name, reward.unit || "–",
    reward.flipped ? "lower is better, so the reward is turned round" : "higher is better",
    range(reward), seen(reward), reward.description || "–",
  ]));
  at("objectives").append(
    make("thead", {}, cells("th", ["Reward", "Unit", "The quantity itself", "Range", "Seen", "What it measures"])),
    make("tbody", {}, ...rows));
  at("card-text").innerHTML = report.card;
  settings("config", report.config);
  settings("environment", report.environment);
}

function settings(id, tree) {
  const rows = [];
  const walk = (name, value) => {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value)) walk(name ? `${name}.${key}` : key, inner);
    } else {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      rows.push(make("tr", {}, make("td", {}, name), make("td", { className: "mono" }, text)));
    }
  };
  walk("", tree);
  if (rows.length) at(id).append(make("table", { className: "settings" }, make("tbody", {}, ...rows)));
  else at(id).parentElement.remove();
}

async function main() {
  at("subtitle").textContent = report.subtitle;
  facts("headline", report.headline);
  facts("facts", report.facts);
  fillCard();
  drawControl();
  try {
    drawings = await unpack();
  } catch (error) {
    console.warn("no drawings:", error);
  }
  card.show(front.members.length ? front.members[Math.floor(front.members.length / 2)] : null);
  best.start();
  await Promise.all([front.start(), drawVolume(), drawCloud(), drawCurves()]);
  finish();
}

main();
