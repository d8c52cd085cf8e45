/** Whether the card has something to show; molecules without a drawing stay in the background. */
function presentable(index) {
  return points.drawing[index] >= 0 || !report.molecules;
}

/** Stands for an axis of oracle calls, which a single reward is shown over. */
const CALL = -1;

/** The front: two axes of the user's choice, three dimensions, or parallel coordinates. */
const front = {
  id: "front-plot",
  view: "plane",
  x: 0,
  y: 1,
  all: true,
  members: points.front.flatMap((on, index) => (on ? [index] : [])),
  /** Beside the front: those that can be shown, and those that only show where the crowd is. */
  others: points.front.flatMap((on, index) => (on || !presentable(index) ? [] : [index])),
  crowd: points.front.flatMap((on, index) => (on || presentable(index) ? [] : [index])),

  title(k) {
    return k === CALL ? "Oracle call" : `${withUnit(report.rewards[k])}, higher is better`;
  },
  column(indices, k) {
    const last = report.n_candidates;
    return indices.map((index) => (k === CALL ? points.call[index] ?? last : points.rewards[index][k]));
  },
  /** The objective that colours the points: the first one not on an axis. */
  get hue() {
    const rest = report.rewards.map((_, k) => k).filter((k) => k !== this.x && k !== this.y);
    return rest.length ? rest[0] : null;
  },

  start() {
    const k = report.rewards.length;
    const tools = at("front-tools");
    if (k === 1) [this.x, this.y] = [CALL, 0];
    if (k > 2) {
      const views = !hasWebGL() ? ["plane"] : k === 3 ? ["plane", "space", "lines"] : ["plane", "lines"];
      const names = { plane: "Two axes", space: "Three dimensions", lines: "Parallel lines" };
      this.view = innerWidth < 700 ? "plane" : views[1] ?? "plane";
      if (views.length > 1) tools.append(chooser("View", views.map((view) => names[view]), views.indexOf(this.view),
        (i) => { this.view = views[i]; this.draw(); }));
      tools.append(this.axisSelect("x"), this.axisSelect("y"));
    }
    const box = make("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => { this.all = box.checked; this.draw(); });
    this.allLabel = make("label", {}, box, `Show the ${format(this.others.length + this.crowd.length)} others`);
    if (this.others.length + this.crowd.length) tools.append(this.allLabel);
    const lead = [k === 1 ? `${format(this.members.length)} of the candidates reach the highest ${report.rewards[0].name}.`
      : `${format(this.members.length)} candidates for which no other is at least as good in every objective and better in one.`];
    if (report.n_shown < report.n_candidates) {
      lead.push(`The page holds ${format(report.n_shown)} of ${format(report.n_candidates)} candidates.`);
    }
    if (report.baseline_front.length) {
      lead.push(`The dashed line is the front of random assembly after ${format(report.baseline_calls)} oracle calls.`);
    }
    at("front-lead").textContent = lead.join(" ");
    card.watchers.push(() => this.mark());
    this.listenToKeys();
    return this.draw();
  },

  axisSelect(which) {
    const names = report.rewards.map((reward) => reward.name);
    const select = make("select", {}, ...names.map((name, i) => make("option", { value: i }, name)));
    select.value = this[which];
    select.addEventListener("change", () => { this[which] = Number(select.value); this.draw(); });
    const label = make("label", {}, which === "x" ? "Across" : "Up", select);
    label.dataset.plane = "true";
    return label;
  },

  async draw() {
    for (const label of at("front-tools").querySelectorAll("[data-plane]")) {
      label.hidden = this.view !== "plane";
      label.style.display = label.hidden ? "none" : "";
    }
    this.allLabel.style.display = this.view === "lines" ? "none" : "";
    at("front-note").textContent = {
      plane: this.hue === null ? "" : `The front is coloured by ${report.rewards[this.hue].name}.`,
      space: "Drag to turn, scroll to zoom.",
      lines: "One line for each candidate of the front; higher is better on every axis. Drag along an axis to select: the best of the selected goes to the card.",
    }[this.view];
    const plot = at(this.id);
    if (plot.dataset.view && plot.dataset.view !== this.view) Plotly.purge(plot);
    const fresh = plot.dataset.view !== this.view;
    plot.dataset.view = this.view;
    const build = { plane: "plane2d", space: "space3d", lines: "parallel" }[this.view];
    await chart(this.id, (color) => this[build](color));
    if (fresh && this.view !== "lines") {
      plot.on("plotly_hover", (event) => card.hover(event.points[0].customdata));
      plot.on("plotly_click", (event) => {
        const index = event.points[0].customdata;
        if (index !== undefined) card.pin(card.pinned === index ? null : index);
      });
    }
    if (fresh && this.view === "lines") plot.on("plotly_restyle", () => this.brushed());
  },

  /** Traces shared by the plane and the space: everything, the front, the pinned point. */
  clouds(color, kind, dimensions, size, hue) {
    const trace = (indices, marker, hoverinfo = "none") => ({
      type: kind, mode: "markers", marker, customdata: indices, hoverinfo,
      ...Object.fromEntries(dimensions.map(([name, k]) => [name, this.column(indices, k)])),
    });
    const paint = hue === null ? { color: color.accent } : {
      color: this.column(this.members, hue), colorscale: color.scale, showscale: true,
      colorbar: {
        title: { text: report.rewards[hue].name, side: "right", font: { size: 12 } },
        thickness: 9, outlinewidth: 0, len: 0.75,
      },
    };
    const pinned = card.pinned === null ? [] : [card.pinned];
    return [
      trace(this.all ? this.crowd : [], { size: size * 0.4, color: color.faint, opacity: 0.4 }, "skip"),
      trace(this.all ? this.others : [], { size: size * 0.65, color: color.faint, opacity: 0.75 }),
      trace(this.members, { size, line: { width: 1, color: color.surface }, ...paint }),
      trace(pinned, {
        size: size * 1.9, color: color.other, symbol: "circle-open", line: { width: 3, color: color.other },
      }),
    ];
  },

  plane2d(color) {
    const traces = this.clouds(color, "scatter", [["x", this.x], ["y", this.y]], 9, this.hue);
    if (report.rewards.length === 2) {
      traces.unshift(this.stairs(report.baseline_front, { width: 1.5, color: color.other, dash: "dash" }),
        this.stairs(this.members.map((index) => points.rewards[index]), { width: 1.7, color: color.accent }));
    }
    const layout = {
      modebar: toolbar(color),
      hovermode: "closest", dragmode: "pan",
      xaxis: axis(this.title(this.x)), yaxis: axis(this.title(this.y)),
    };
    return [traces, layout];
  },

  /** The edge of what the front dominates: down, then right, from each point to the next. */
  stairs(rewards, line) {
    const order = [...rewards].sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    return {
      type: "scatter", mode: "lines", hoverinfo: "skip", line: { shape: "vh", ...line },
      x: order.map((row) => row[0]), y: order.map((row) => row[1]),
    };
  },

  space3d(color) {
    const traces = this.clouds(color, "scatter3d", [["x", 0], ["y", 1], ["z", 2]], 6, null);
    const side = (k) => ({ ...axis(report.rewards[k].name), backgroundcolor: "rgba(0,0,0,0)", showspikes: false });
    const scene = {
      xaxis: side(0), yaxis: side(1), zaxis: side(2),
      camera: { eye: { x: 1.4, y: 1.4, z: 0.7 } },
    };
    return [traces, { scene, modebar: toolbar(color), margin: { l: 0, r: 0, t: 0, b: 0 } }];
  },

  parallel(color) {
    const dimensions = report.rewards.map((reward, k) => ({
      label: withUnit(reward), values: this.column(this.members, k),
      range: reward.seen,
    }));
    const line = { color: this.column(this.members, 0), colorscale: color.scale };
    const trace = {
      type: "parcoords", dimensions, line, labelfont: { color: color.ink, size: 13 },
      tickfont: { color: color.soft }, rangefont: { color: "rgba(0,0,0,0)" },
      unselected: { line: { color: color.line, opacity: 0.35 } },
    };
    return [[trace], { margin: { l: 60, r: 60, t: 60, b: 30 } }];
  },

  /** Parallel lines cannot be pointed at: the best of the selected ones goes to the card. */
  brushed() {
    const limits = at(this.id).data[0].dimensions.map((dimension) => dimension.constraintrange);
    const within = (value, limit) => {
      if (!limit) return true;
      const ranges = Array.isArray(limit[0]) ? limit : [limit];
      return ranges.some(([low, high]) => low <= value && value <= high);
    };
    const kept = this.members.filter((index) =>
      limits.every((limit, k) => within(points.rewards[index][k], limit)));
    if (!kept.length) return;
    const score = (index) => report.rewards.reduce((sum, reward, k) => {
      const [low, high] = reward.seen;
      return sum + (points.rewards[index][k] - low) / (high - low || 1);
    }, 0);
    card.pin(kept.reduce((best, index) => (score(index) > score(best) ? index : best)));
  },

  /** Move the ring to the pinned point. */
  mark() {
    const plot = at(this.id);
    if (!plot.data || this.view === "lines") return;
    const indices = card.pinned === null ? [] : [card.pinned];
    const used = this.view === "space" ? [["x", 0], ["y", 1], ["z", 2]] : [["x", this.x], ["y", this.y]];
    const change = Object.fromEntries(used.map(([name, k]) => [name, [this.column(indices, k)]]));
    Plotly.restyle(plot, { ...change, customdata: [indices] }, [plot.data.length - 1]);
  },

  listenToKeys() {
    at(this.id).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!step || !this.members.length) return;
      event.preventDefault();
      const along = (index) => this.column([index], this.x)[0];
      const order = [...this.members].sort((a, b) => along(a) - along(b));
      const here = order.indexOf(card.pinned);
      const next = here < 0 ? (step > 0 ? 0 : order.length - 1) : here + step;
      card.pin(order[clamp(next, 0, order.length - 1)]);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") card.pin(null);
    });
  },
};

function hasWebGL() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl"));
  } catch {
    return false;
  }
}
