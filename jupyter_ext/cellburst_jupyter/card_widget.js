// The run card's view. State comes in `card` (see card_model.py); the stop button sends {kind: "stop"}.
const SLOTS = 15; // seconds that a chart is wide at first; it fills from the right, as system monitors do
const WIDTH = 60;
const HEIGHT = 18;
const AGAIN_MS = 1000; // a double click is one stop, not a kill
const SIMULATED = " SIMULATED";

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

function shape(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function chart(data) {
  const box = element("figure", "cb-chart");
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": data.label });
  const step = WIDTH / (Math.max(SLOTS, data.ratios.length) - 1);
  const first = WIDTH - (data.ratios.length - 1) * step;
  const y = (ratio) => (HEIGHT - 1 - ratio * (HEIGHT - 2)).toFixed(1);
  const points = data.ratios.map((ratio, index) => `${(first + index * step).toFixed(1)},${y(ratio)}`);
  if (points.length === 1) points.unshift(`${(WIDTH - step).toFixed(1)},${y(data.ratios[0])}`);
  const left = points[0].split(",")[0];
  svg.append(
    shape("polygon", { points: `${left},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}` }),
    shape("polyline", { points: points.join(" ") }),
  );
  const caption = element("figcaption", "", `${data.name} `);
  caption.append(element("span", "cb-now", data.now));
  if (data.more) caption.append(`, ${data.more}`);
  box.append(svg, caption);
  return box;
}

function stopButton(model) {
  const button = element("button", "cb-stop");
  const word = element("span", "", "Stop");
  button.type = "button";
  button.title = "Interrupt this cell";
  button.append(element("span", "cb-square"), word);
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    model.send({ kind: "stop" });
    button.setAttribute("aria-disabled", "true"); // not `disabled`, which would lose the keyboard's focus
    word.textContent = "Stopping";
    setTimeout(() => {
      button.removeAttribute("aria-disabled");
      word.textContent = "Kill";
      button.title = "It has not stopped: interrupt again, then end its process; the names there are lost";
    }, AGAIN_MS);
  });
  return button;
}

function render({ model, el }) {
  const root = element("section", "cb-card");
  root.setAttribute("aria-label", "Run card");
  const head = element("div", "cb-head");
  const hardware = element("span", "cb-hardware");
  const tag = element("span", "cb-simulated", SIMULATED.trim());
  const status = element("span", "cb-status");
  status.setAttribute("aria-hidden", "true");
  const spoken = element("span", "cb-spoken");
  spoken.setAttribute("role", "status");
  spoken.setAttribute("aria-live", "polite");
  const place = element("span", "cb-place");
  const cost = element("span", "cb-cost");
  const stop = stopButton(model);
  const right = element("span", "cb-right");
  right.append(cost, stop);
  head.append(hardware, tag, place, status, spoken, right);
  const started = element("div", "cb-started");
  const charts = element("div", "cb-charts");
  const notes = element("div", "cb-notes");
  root.append(head, started, charts, notes);
  el.append(root);

  const draw = () => {
    const card = model.get("card");
    hardware.textContent = card.simulated ? card.hardware.replace(SIMULATED, "") : card.hardware;
    tag.hidden = !card.simulated;
    // A screen reader hears a new status, not every tenth of a second of it.
    const words = card.status.replace(/ [\d.]+ (s|min|h).*$/, "");
    if (spoken.textContent !== words) spoken.textContent = words;
    status.textContent = card.status;
    place.textContent = card.place;
    place.title = card.container;
    cost.textContent = card.cost;
    started.textContent = card.started;
    notes.replaceChildren(...card.notes.map((note) => element("div", "", note)));
    charts.replaceChildren(...card.charts.map(chart));
    stop.hidden = !card.running;
  };
  model.on("change:card", draw);
  draw();
  return () => model.off("change:card", draw);
}

export default { render };
