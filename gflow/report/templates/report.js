"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const points = report.points;
let drawings = [];

/** An element with properties, attributes (names with a dash) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const at = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Three significant digits, whole numbers in full with separators. */
function format(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0"; // a flipped reward may be a negative zero
  if (Number.isInteger(value) || Math.abs(value) >= 1000) {
    return Math.round(value).toLocaleString("en");
  }
  if (Math.abs(value) < 0.001 && value !== 0) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

const withUnit = (reward) => (reward.unit ? `${reward.name} (${reward.unit})` : reward.name);

/** The numbers of a column with as many decimals as three digits of the largest need. */
function formatter(values) {
  const largest = Math.max(...values.map(Math.abs), 1e-12);
  const digits = clamp(2 - Math.floor(Math.log10(0.999 * largest)), 0, 4);
  const whole = values.every(Number.isInteger);
  const style = { minimumFractionDigits: whole ? 0 : digits, maximumFractionDigits: digits };
  return (value) => (value || 0).toLocaleString("en", style);
}

/** Weights as the user would ask for them. */
function describe(preference) {
  const only = preference.findIndex((w) => w > 0.999);
  if (only >= 0) return `only ${report.rewards[only].name}`;
  if (Math.max(...preference) - Math.min(...preference) < 1e-3) return "even weights";
  return preference.map((w, k) => `${report.rewards[k].name} ${Math.round(100 * w)} %`).join(" · ");
}

/** The drawing of a point, or its text where it has none. */
function drawing(index) {
  const number = points.drawing[index];
  if (number < 0 || drawings[number] === undefined) {
    const text = report.molecules ? "No drawing kept for this one" : points.text[index];
    return make("div", { className: "drawing text" }, text);
  }
  const box = make("div", { className: "drawing", role: "img" });
  box.setAttribute("aria-label", `Structure of ${points.text[index]}`);
  box.innerHTML = drawings[number];
  return box;
}

function copyButton(text) {
  const button = make("button", { type: "button", title: "Copy to the clipboard" }, "Copy");
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    button.textContent = (await copy(text)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
  return button;
}

/** Pages opened from disk may have no clipboard interface; the old command still serves them. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** One reward of a point: name, value, and where it lies in its range. */
function measure(reward, value) {
  const low = reward.low ?? reward.seen[0];
  const high = reward.high ?? reward.seen[1];
  const share = high > low ? clamp((value - low) / (high - low), 0, 1) : 0;
  const fill = make("i");
  fill.style.width = `${100 * share}%`;
  return make("div", { className: "measure", title: reward.description },
    make("div", {}, make("span", {}, withUnit(reward)), make("b", {}, format(value))),
    make("div", { className: "bar", "aria-hidden": "true" }, fill));
}

/** Where a point came from, in one sentence. */
function origin(index) {
  const words = [];
  if (points.front[index]) words.push("On the front.");
  const step = points.step[index];
  words.push(`From: ${points.source[index]}${step ? `, step ${format(step)}` : ""}.`);
  if (points.call[index]) words.push(`Oracle call ${format(points.call[index])}.`);
  if (points.preference[index]) words.push(`Asked for ${describe(points.preference[index])}.`);
  return words.join(" ");
}

/** The side card: follows the pointer until a point is pinned. */
const card = {
  pinned: null,
  shown: null,
  watchers: [],
  show(index) {
    this.shown = index;
    const box = at("card");
    box.classList.toggle("pinned", this.pinned !== null);
    if (index === null) {
      box.replaceChildren(make("p", { className: "empty" },
        "Point at a candidate to see it here. Click to keep it, Escape to let go."));
      return;
    }
    const state = make("div", { className: "state" });
    if (this.pinned !== null) {
      const release = make("button", { type: "button" }, "Let go");
      release.addEventListener("click", () => this.pin(null));
      state.append("Pinned", release);
    } else if (front.view !== "lines") {
      state.append("Click the point to pin it");
    }
    const name = make("div", { className: "name" },
      make("span", {}, points.text[index]), copyButton(points.text[index]));
    const measures = report.rewards.map((reward, k) => measure(reward, points.rewards[index][k]));
    box.replaceChildren(state, drawing(index), name, ...measures,
      make("p", { className: "origin" }, origin(index)));
  },
  hover(index) {
    if (this.pinned === null) this.show(index);
  },
  pin(index) {
    this.pinned = index;
    this.show(index ?? this.shown);
    for (const watch of this.watchers) watch(index);
  },
};

/** A row of buttons of which one is pressed, or a select when there are many. */
function chooser(label, names, chosen, act) {
  if (names.length > 6) {
    const select = make("select", {}, ...names.map((name, i) => make("option", { value: i }, name)));
    select.value = chosen;
    select.addEventListener("change", () => act(Number(select.value)));
    return make("label", {}, label, select);
  }
  const group = make("div", { className: "choice", role: "group", "aria-label": label });
  names.forEach((name, i) => {
    const button = make("button", { type: "button", "aria-pressed": String(i === chosen) }, name);
    button.addEventListener("click", () => {
      for (const other of group.children) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", "true");
      act(i);
    });
    group.append(button);
  });
  return group;
}

/** Charts take their colours from the page and are drawn again when these change. */
const charts = new Map();

function colors() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "soft", "faint", "line", "accent", "other", "surface"];
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  const scale = ["worst", "middle", "finest"].map((name, i) => [i / 2, read(name)]);
  return { scale, ...Object.fromEntries(names.map((name) => [name, read(name)])) };
}

/** Buttons to zoom and to save a picture, for the charts that ask for them. */
const toolbar = (color) => ({
  bgcolor: "rgba(0,0,0,0)", color: color.faint, activecolor: color.accent,
});

function axis(title, more = {}) {
  const color = colors();
  return {
    title: { text: title, font: { size: 13, color: color.soft }, standoff: 8 },
    gridcolor: color.line, zeroline: false, linecolor: color.line, tickcolor: color.line,
    automargin: true, ...more,
  };
}

/** Draw a chart; `build` returns [traces, layout] and is called again for new colours. */
async function chart(id, build) {
  charts.set(id, build);
  const color = colors();
  const [traces, layout] = build(color);
  const common = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
    font: { family: getComputedStyle(document.body).fontFamily, color: color.ink, size: 12.5 },
    margin: { l: 56, r: 12, t: 12, b: 48 }, showlegend: false,
    hoverlabel: { bgcolor: color.surface, bordercolor: color.faint, font: { color: color.ink } },
  };
  const settings = {
    responsive: true, displaylogo: false, displayModeBar: Boolean(layout.modebar),
    showSendToCloud: false, plotlyServerURL: "", // nothing may leave this page
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  await Plotly.react(at(id), traces, { ...common, ...layout }, settings);
}

/** Drawings travel compressed; without DecompressionStream the page shows texts only. */
async function unpack() {
  const bytes = Uint8Array.from(atob(at("drawings").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
