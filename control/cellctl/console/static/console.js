// The console's page. No framework: what the server says is shown, and all text goes in as text.
const COLOURS = 8;
const $ = (id) => document.getElementById(id);
let token = "";
let overview = null;
let olderToken = "";
let source = null;

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-console-token": token },
    body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (answer.status === 401) signedOut(found.oidc);
  if (!answer.ok) throw new Error(`${found.reason}: ${found.message}`);
  return found;
}

function tell(text) { $("news").textContent = text; }
async function trying(work) {
  try { return await work(); } catch (error) { tell(error.message); return null; }
}

// ---- signing in and out

function signedOut(oidc) {
  if (source) source.close();
  source = null;
  document.querySelector("nav").hidden = true;
  $("who").hidden = true;
  for (const page of document.querySelectorAll(".page")) page.hidden = true;
  $("page-signin").hidden = false;
  $("oidc").hidden = !oidc;
}

async function enter() {
  const answer = await fetch("/api/me");
  const me = await answer.json();
  if (!answer.ok) { signedOut(me.oidc); return; }
  token = me.token;
  const roles = (me.roles || []).map((role) => role.replace("ROLE_", "").toLowerCase()).join(", ");
  $("who-name").textContent = `${me.name} (${roles || "no roles"})`;
  $("who").hidden = false;
  document.querySelector("nav").hidden = false;
  $("page-signin").hidden = true;
  tell("");
  listen();
  turn();
}

$("signin").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/signin", { method: "POST", body: new URLSearchParams(new FormData(event.target)) });
  if (answer.ok) { event.target.reset(); enter(); return; }
  const found = await answer.json();
  tell(found.message);
});
$("signout").addEventListener("click", async () => {
  await fetch("/signout", { method: "POST", headers: { "x-console-token": token } });
  tell("Signed out.");
  signedOut(false);
});

// ---- what is live

function listen() {
  if (source) source.close();
  source = new EventSource("/api/events");
  source.addEventListener("overview", (event) => { overview = JSON.parse(event.data); show(); });
  source.addEventListener("signedout", () => signedOut(false));
  source.onerror = () => tell("The console does not answer; trying again.");
  source.onopen = () => tell("");
}

function turn() {
  const page = (location.hash || "#mesh").slice(1).split("/")[0];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${page}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const section of document.querySelectorAll(".page")) section.hidden = section.id !== `page-${page}`;
  if (page === "audit") trying(() => audit(""));
  if (page === "life" && location.hash.includes("/")) {
    const id = decodeURIComponent(location.hash.split("/")[1]);
    document.querySelector("#search input").value = id;
    trying(() => life(id));
  }
}
addEventListener("hashchange", turn);

function show() {
  const mesh = overview.mesh || {};
  const trouble = mesh.error || "";
  $("trouble").hidden = !trouble;
  $("trouble").textContent = trouble;
  if (mesh.cells) { map(mesh.cells, overview.operations); cells(mesh.cells); }
  rows($("processes"), "What runs on this machine", ["name", "PID", "address", "state"],
    (mesh.processes || []).map((item) => [item.name, item.pid || "", item.address || "", flag(item.alive ? "runs" : "DOWN", item.alive)]));
  const failover = overview.failover || {};
  $("failover").textContent = failover.error ? failover.error
    : `Automatic failover is ${failover.automatic ? "on" : "off"}, by ${failover.real_traffic ? "lost leases and failing payments" : "lost leases"}.`;
  operations(overview.operations);
  approvals(overview.approvals);
  policies(mesh);
  drills(overview.drills);
}

function colour(names, cell) { return `var(--c${names.indexOf(cell) % COLOURS})`; }

function map(found, running) {
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
    const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    square.setAttribute("x", (slot % 32) * 10 + 0.5);
    square.setAttribute("y", Math.floor(slot / 32) * 10 + 0.5);
    square.setAttribute("width", 9);
    square.setAttribute("height", 9);
    square.style.fill = cell ? colour(names, cell.cell) : "transparent";
    if (cell && cell.health !== "healthy") square.setAttribute("fill-opacity", "0.35");
    if (moving.has(slot)) square.setAttribute("class", "moving");
    svg.append(square);
  }
  $("slots-text").textContent = "1,024 slots, row by row: " + found
    .map((cell) => `${cell.cell} has ${cell.slots}${cell.health === "healthy" ? "" : ` and is ${cell.health.replace("_", " ")}`}`).join("; ")
    + (moving.size ? `; ${moving.size} move now.` : ".");
}

function span(text) {
  const [first, last] = text.split("-").map(Number);
  return Array.from({ length: (last ?? first) - first + 1 }, (_, number) => first + number);
}

function cells(found) {
  const names = found.map((cell) => cell.cell).sort();
  $("regions").replaceChildren(...found.map((cell) => {
    const good = cell.health === "healthy";
    const card = make("article", { class: "cell", "aria-label": `cell ${cell.cell}` },
      make("h3", {}, `${cell.cell} · ${cell.region}`, flag(cell.health.replace("_", " "), good)),
      make("dl", {},
        ...pair("slots", cell.capacity ? `${cell.slots} of ${cell.capacity}` : cell.slots),
        ...pair("failed", `${cell.failure_percent} %`),
        ...pair("p99", cell.p99_ms ? `${cell.p99_ms} ms` : "–"),
        ...pair("address", cell.address || "–")),
      cell.note ? make("p", { class: "warn" }, cell.note) : null);
    card.style.borderTopColor = colour(names, cell.cell);
    return card;
  }));
}

function pair(term, value) { return [make("dt", {}, term), make("dd", {}, String(value))]; }
function flag(text, good) { return make("span", { class: good ? "good" : "bad" }, text); }

function rows(table, caption, heads, lines) {
  table.replaceChildren(
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...lines.map((line) => make("tr", {}, ...line.map((value) =>
      make("td", typeof value === "number" ? { class: "number" } : {}, value instanceof Node ? value : String(value)))))));
}

// ---- operations and approvals

function operations(found) {
  const place = $("operations-list");
  if (!Array.isArray(found)) { place.textContent = found ? found.error : ""; return; }
  const open = document.activeElement && place.contains(document.activeElement);
  if (open) return; // Not under somebody's finger.
  place.replaceChildren(...(found.length ? found : []).map((operation) => {
    const acts = actsOf(operation);
    return make("article", { class: "card", "aria-label": operation.operation_id },
      make("h3", {}, `${operation.kind} ${operation.cell} `, flag(operation.step.replace("_", " "), operation.step === "done")),
      make("p", {}, `${operation.operation_id}, by ${operation.actor}: ${operation.reason}`),
      make("details", {}, make("summary", {}, `${operation.moves.length} moves, ${operation.history.length} steps`),
        make("ol", {}, ...operation.history.map((step) => make("li", {}, `${step.time} ${step.step} ${step.note}`))),
        make("ol", {}, ...operation.moves.map((move) => make("li", {}, `slots ${move.slots}: ${move.source} → ${move.target}, epoch ${move.epoch}`)))),
      acts.length ? make("p", {}, ...acts.flatMap((act) => [button(act, operation.operation_id), " "])) : null);
  }));
  if (!found.length) place.append(make("p", {}, "No operation yet."));
}

function actsOf(operation) {
  if (["failed", "aborted", "rolled_back"].includes(operation.step)) return [];
  if (operation.step === "done") return operation.undone_by || !operation.moves.length ? [] : ["rollback"];
  if (operation.step === "paused") return ["resume", "abort"];
  return ["pause", "abort"];
}

function button(act, id) {
  return make("button", { class: act === "resume" ? "" : "danger", type: "button", onclick: () => trying(async () => {
    const reason = await ask(`${act} ${id}?`, act);
    if (reason === null) return;
    const done = await call(`/api/operations/${encodeURIComponent(id)}/${act}`, { reason });
    tell(`${done.operation_id}: ${done.step}`);
  }) }, act);
}

function approvals(found) {
  const table = $("approvals");
  if (!Array.isArray(found)) { table.replaceChildren(make("caption", {}, found ? found.error : "")); return; }
  if (table.contains(document.activeElement)) return;
  rows(table, found.length ? "What waited, or waits, for a second person" : "Nothing waits for a second person",
    ["what", "asked by", "state", "decide"],
    found.map((item) => [
      make("span", {}, item.action, " ", make("code", {}, item.parameters)),
      item.requester,
      item.state.replace("STATE_", "").toLowerCase() + (item.approver ? ` by ${item.approver}: ${item.note}` : ""),
      item.state === "STATE_PENDING" ? make("span", {}, decision("approve", item), " ", decision("reject", item)) : "",
    ]));
}

function decision(act, item) {
  return make("button", { type: "button", class: act === "reject" ? "danger" : "", onclick: () => trying(async () => {
    const reason = await ask(`${act} ${item.action}?`, act);
    if (reason === null) return;
    const done = await call(`/api/approvals/${encodeURIComponent(item.approval_id)}/${act}`, { reason });
    tell(`${done.approval_id}: ${done.state.replace("STATE_", "").toLowerCase()}`);
  }) }, act);
}

function ask(title, act) {
  $("ask-title").textContent = title;
  $("ask-yes").textContent = act;
  const dialog = $("ask");
  const input = dialog.querySelector("input");
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close",
    () => resolve(dialog.returnValue === "yes" && input.value ? input.value : null), { once: true }));
}

// ---- policies, drills, audit

function policies(mesh) {
  rows($("policies"), "In force in the whole mesh", ["kind", "name", "document", "by", "why"],
    (mesh.policies || []).map((item) => [item.kind, item.name, make("code", {}, typeof item.document === "string" ? item.document : JSON.stringify(item.document)), item.actor || "", item.reason || ""]));
  rows($("reports"), "Breakers that are not closed, levels of degradation, refusals", ["process", "breakers", "level", "features", "limit", "refused"],
    (mesh.policy_reports || []).map((item) => [
      item.process,
      list(Object.entries(item.breakers || {}).map(([name, state]) => typeof state === "string" ? [name, state] : [state.dependency || name, `${state.state}${state.forced ? " (forced)" : ""}`])
        .filter(([, state]) => !/closed$/i.test(state)).map(([name, state]) => `${name} ${state}`)),
      item.degradation_level || 0,
      list(Object.entries(item.features || {}).map(([name, mode]) => `${name} ${mode}`)),
      item.concurrency_limit || 0,
      list(Object.entries(item.refused || {}).map(([reason, count]) => `${count} ${reason}`)),
    ]));
}
function list(items) { return items.join(", ") || "–"; }

function drills(found) {
  const table = $("drills");
  if (!Array.isArray(found)) { table.replaceChildren(make("caption", {}, found ? found.error : "")); return; }
  rows(table, found.length ? "Last run of each" : "No drill has run here", ["name", "fault", "state", "verdict", "outage", "report"],
    found.map((item) => [item.spec.name, item.spec.fault.replace("FAULT_", "").toLowerCase(), item.state.replace("STATE_", "").toLowerCase(),
      item.verdict ? flag(item.verdict, item.verdict === "held") : "–", `${item.outage_ms} ms`,
      item.report ? make("button", { type: "button", class: "quiet", onclick: () => report(item.spec.name) }, "read") : ""]));
}

async function report(name) {
  const answer = await fetch(`/api/drills/${encodeURIComponent(name)}/report`);
  $("drill-report").textContent = await answer.text();
  $("drill-report").hidden = false;
  $("drill-report").focus();
}

async function audit(pageToken) {
  const found = await call(`/api/audit?page_token=${encodeURIComponent(pageToken)}`);
  rows($("audit"), pageToken ? "Older" : "Newest first", ["when", "who", "what", "verdict", "why"],
    found.records.map((item) => [item.time, item.actor, make("span", {}, item.action, " ", make("code", {}, item.detail)),
      flag(item.verdict, item.verdict === "allowed"), item.reason]));
  olderToken = found.next_page_token;
  $("older").hidden = !olderToken;
}
$("older").addEventListener("click", () => trying(() => audit(olderToken)));
$("verify-audit").addEventListener("click", () => trying(async () => {
  const found = await call("/api/audit/verify");
  $("chain").textContent = found.ok ? `The chain holds: ${found.records} records.` : `Broken at ${found.broken_audit_id}: ${found.problem}`;
}));

// ---- a payment's life

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = new FormData(event.target).get("id").trim();
  if (location.hash === `#life/${encodeURIComponent(id)}`) trying(() => life(id));
  else location.hash = `#life/${encodeURIComponent(id)}`;
});

async function life(id) {
  $("life").replaceChildren();
  const found = await call(`/api/life/${encodeURIComponent(id)}`);
  const home = (epoch) => { const at = found.homes.find((item) => item.epoch === epoch); return at ? `cell ${at.owner}, epoch ${epoch}` : `epoch ${epoch}`; };
  const last = found.homes[found.homes.length - 1];
  $("life").replaceChildren(...[
    make("p", {}, `${found.kind} in slot ${found.slot}${last ? `, at home in cell ${last.owner} since epoch ${last.epoch}` : ""}.`),
    found.traces.length ? make("p", {}, found.traces.length > 1 ? "Traces: " : "Trace: ", ...found.traces.flatMap((trace, number) => [number ? ", " : "", trace.url
      ? make("a", { href: trace.url, target: "_blank", rel: "noopener noreferrer" }, trace.trace_id)
      : make("code", {}, trace.trace_id)])) : null,
    make("ol", { class: "steps" }, ...found.steps.map((step) => make("li", {},
      make("time", { datetime: step.time }, step.time),
      make("div", {}, make("strong", {}, summary(step)), step.detail.epoch ? ` · written by ${home(step.detail.epoch)}` : ""),
      make("details", {}, make("summary", {}, "all fields"),
        make("dl", {}, ...Object.entries(step.detail).flatMap(([name, value]) => pair(name, typeof value === "object" ? JSON.stringify(value) : value)))))))].filter(Boolean));
}

function summary(step) {
  const d = step.detail;
  const money = d.amount !== undefined ? `${d.amount} ${d.currency || ""}`.trim() : "";
  if (step.what === "order") return `Order of ${money} by ${d.merchant_id} for ${d.payer_id}: ${d.state}`;
  if (step.what === "payment") return `Payment of ${money} (${d.refunded} refunded)`;
  if (step.what === "refund") return `Refund of ${money}: ${d.state}`;
  if (step.what === "entry") return `Entry ${d.amount > 0 ? "+" : ""}${d.amount} in ${d.account_id}, balance ${d.balance_after}`;
  if (step.what === "event") return `Event ${d.type}${d.published ? ", published" : ", waits to be published"}`;
  if (step.what === "delivery") return `Webhook ${d.event_type}: ${d.state} after ${d.attempts} attempts ${d.last_error}`;
  if (step.what === "transfer") return `Transfer of ${money} from ${d.payer_id} to ${d.payee_id}: ${d.state}`;
  if (step.what === "branch") return `The payee’s side: ${d.state}`;
  return `${step.what} ${money}`;
}

enter();
