// Regions, cells, slots: who owns what, what moves, and what flows.
import { $, button, can, figure, flag, make, pair, redraw, rows } from "./page.js";

const COLOURS = 8;
const SIDE = 32;
// Beside the map: bars of the ranges of slots that are counted together, two rows of it each.
const BAR_LEFT = 328;
const BAR_MAX = 70;
const RANGES = 16;
const GOOD_PERCENT = 99;

export function mesh(overview) {
  const found = overview.mesh || {};
  const trouble = found.error || "";
  $("trouble").hidden = !trouble;
  $("trouble").textContent = trouble;
  const flow = overview.flow || {};
  if (found.cells) { map(found.cells, overview.operations, flow); cells(found.cells, flow); ranges(flow, found.cells); }
  rows($("processes"), "What runs on this machine", ["name", "PID", "address", "state"],
    (found.processes || []).map((item) => [item.name, item.pid || "", item.address || "", flag(item.alive ? "runs" : "DOWN", item.alive)]));
  failover(overview.failover || {});
}

function failover(policy) {
  const place = $("failover");
  if (policy.error) { place.textContent = policy.error; return; }
  const act = policy.automatic ? "off" : "on";
  redraw(place, () => place.replaceChildren(
    `Automatic failover is ${policy.automatic ? "on" : "off"}, by ${policy.real_traffic ? "lost leases and failing payments" : "lost leases"}. `,
    can("operator") ? button(`Switch it ${act}`, { title: `Switch automatic failover ${act}?`, path: `/api/failover/automatic/${act}`, quiet: true, danger: act === "off" }) : ""));
}

function colour(names, cell) { return `var(--c${names.indexOf(cell) % COLOURS})`; }

export function span(text) {
  const [first, last] = text.split("-").map(Number);
  return Array.from({ length: (last ?? first) - first + 1 }, (_, number) => first + number);
}

function drawn(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function map(found, running, flow) {
  const names = found.map((cell) => cell.cell).sort();
  const svg = $("slots");
  const moving = new Set();
  for (const operation of Array.isArray(running) ? running : []) {
    if (["done", "failed", "aborted", "rolled_back"].includes(operation.step)) continue;
    for (const move of operation.moves) span(move.slots).forEach((slot) => moving.add(slot));
  }
  const owner = new Map();
  for (const cell of found) for (const piece of cell.ranges) for (const slot of span(piece.slots)) owner.set(slot, cell);
  svg.replaceChildren();
  for (let slot = 0; slot < 1024; slot += 1) {
    const cell = owner.get(slot);
    const square = drawn("rect", { x: (slot % SIDE) * 10 + 0.5, y: Math.floor(slot / SIDE) * 10 + 0.5, width: 9, height: 9 });
    square.style.fill = cell ? colour(names, cell.cell) : "transparent";
    if (cell && cell.health !== "healthy") square.setAttribute("fill-opacity", "0.35");
    if (moving.has(slot)) square.setAttribute("class", "moving");
    svg.append(square);
  }
  bars(svg, flow.ranges || []);
  $("slots-text").textContent = "1,024 slots, row by row: " + found
    .map((cell) => `${cell.cell} has ${cell.slots}${cell.health === "healthy" ? "" : ` and is ${cell.health.replace("_", " ")}`}`).join("; ")
    + (moving.size ? `; ${moving.size} move now.` : ".")
    + " The bars show requests per second of 64 slots each; red where some fail. The table below has the figures.";
}

function bars(svg, found) {
  const most = Math.max(1, ...found.map((range) => range.requests_per_s || 0));
  for (const range of found) {
    if (!range.requests_per_s) continue;
    const y = (Number(range.slots.split("-")[0]) / 64) * (320 / RANGES) + 10;
    const width = Math.max(2, (range.requests_per_s / most) * BAR_MAX);
    const bad = range.success_percent !== null && range.success_percent < GOOD_PERCENT;
    svg.append(drawn("line", { x1: BAR_LEFT, x2: BAR_LEFT + width, y1: y, y2: y, class: bad ? "flow bad" : "flow" }));
  }
}

function cells(found, flow) {
  const names = found.map((cell) => cell.cell).sort();
  const flows = new Map((flow.cells || []).map((item) => [item.cell, item]));
  $("regions").replaceChildren(...found.map((cell) => {
    const now = flows.get(cell.cell) || {};
    const card = make("article", { class: "cell", "aria-label": `cell ${cell.cell}` },
      make("h3", {}, `${cell.cell} · ${cell.region}`, flag(cell.health.replace("_", " "), cell.health === "healthy")),
      make("dl", {},
        ...pair("slots", cell.capacity ? `${cell.slots} of ${cell.capacity}` : cell.slots),
        ...pair("requests", now.silent ? "no figures" : figure(now.requests_per_s, " /s")),
        ...pair("payments", figure(now.payments_per_s, " /s")),
        ...pair("success", percent(now.success_percent)),
        ...pair("failed", `${cell.failure_percent} %`),
        ...pair("p99", cell.p99_ms ? `${cell.p99_ms} ms` : "–"),
        ...pair("address", cell.address || "–")),
      cell.note ? make("p", { class: "warn" }, cell.note) : null);
    card.style.borderTopColor = colour(names, cell.cell);
    return card;
  }));
}

function percent(value) {
  return value === null || value === undefined ? "–" : flag(`${value} %`, value >= GOOD_PERCENT);
}

function ranges(flow, found) {
  const owners = (slots) => found.filter((cell) => cell.ranges.some((piece) => meets(piece.slots, slots))).map((cell) => cell.cell);
  rows($("flow"), flow.error || (flow.window_s ? `Requests at home, by range of slots, in the last ${flow.window_s} s` : "Being measured"),
    ["slots", "at home in", "requests/s", "success", "p99, at most"],
    (flow.ranges || []).map((range) => [range.slots, owners(range.slots).join(", "), range.requests_per_s ?? 0, percent(range.success_percent), figure(range.p99_ms, " ms")]));
}

function meets(one, other) {
  const [first, last] = one.split("-").map(Number);
  const [from, to] = other.split("-").map(Number);
  return first <= (to ?? from) && (last ?? first) >= from;
}
