const points = report.points;
let drawings = [];

const withUnit = (reward) => (reward.unit ? `${reward.name} (${reward.unit})` : reward.name);

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

/** Drawings travel compressed; without DecompressionStream the page shows texts only. */
async function unpack() {
  const bytes = Uint8Array.from(atob(at("drawings").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
