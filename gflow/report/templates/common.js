"use strict";
const report = JSON.parse(document.getElementById("data").textContent);

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

/** The numbers of a column with as many decimals as three digits of the largest need. */
function formatter(values) {
  const largest = Math.max(...values.map(Math.abs), 1e-12);
  const digits = clamp(2 - Math.floor(Math.log10(0.999 * largest)), 0, 4);
  const whole = values.every(Number.isInteger);
  const style = { minimumFractionDigits: whole ? 0 : digits, maximumFractionDigits: digits };
  return (value) => (value || 0).toLocaleString("en", style);
}

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

/** Headline numbers and other facts, as terms of a definition list. */
function facts(id, entries) {
  at(id).append(...entries.map((entry) => make("div", {},
    make("dt", {}, entry.label, entry.note ? make("small", {}, entry.note) : null),
    make("dd", {}, entry.value))));
}

/** The page is drawn: follow the colours of the system, and say so in the title. */
function finish() {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [id, build] of charts) chart(id, build);
  });
  document.title = `ready ${report.title}`;
}
