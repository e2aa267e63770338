// What every part of the page uses. No framework: what the server says is shown, and all text goes in as text.
export const $ = (id) => document.getElementById(id);
// Who has signed in, and the token that goes with everything that changes something.
export const me = { name: "", id: "", roles: [], token: "" };
let leaving = () => {};

export function whenSignedOut(act) { leaving = act; }

export function can(...roles) { return roles.some((role) => me.roles.includes(role)); }

export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-console-token": me.token },
    body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (answer.status === 401) leaving(found.oidc);
  if (!answer.ok) throw new Error(`${found.reason}: ${found.message}`);
  return found;
}

export function tell(text) { $("news").textContent = text; }
export async function trying(work) {
  try { return await work(); } catch (error) { tell(error.message); return null; }
}

// Asks why, and where if there are several places; then does it, says what became of it, and looks again.
export function button(text, { title, path, body = {}, danger = false, quiet = false, places = null, said = null, after = null, name = null }) {
  const look = danger ? "danger" : quiet ? "quiet" : "";
  return make("button", { type: "button", class: look, "aria-label": name, onclick: () => trying(async () => {
    const answered = await ask(title, text, places);
    if (answered === null) return;
    const done = await call(path, { ...body, ...answered });
    tell(said ? said(done) : `${text}: done`);
    if (after) await after();
  }) }, text);
}

function ask(title, act, places) {
  $("ask-title").textContent = title;
  $("ask-yes").textContent = act;
  $("ask-where").hidden = !places;
  const where = $("ask-where").querySelector("select");
  where.replaceChildren(...(places || []).map((place) => make("option", { value: place.value }, place.text)));
  const dialog = $("ask");
  const input = dialog.querySelector("input");
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "yes" || !input.value) resolve(null);
    else resolve(places ? { reason: input.value, cell: where.value } : { reason: input.value });
  }, { once: true }));
}

export function pair(term, value) { return [make("dt", {}, term), make("dd", {}, value instanceof Node ? value : String(value))]; }
export function flag(text, good) { return make("span", { class: good === null ? "warn" : good ? "good" : "bad" }, text); }
export function list(items) { return items.join(", ") || "–"; }
export function figure(value, unit = "") { return value === null || value === undefined ? "–" : `${value}${unit}`; }
export function when(time) { return make("time", { datetime: time }, time.slice(0, 19).replace("T", " ")); }
// Of a SPIFFE ID, what people call each other by.
export function short(id) { return id.split("/").slice(-1)[0] || id; }
export function day(date) { return make("time", { datetime: date }, date); }
export function buttons(...all) { return make("span", { class: "buttons" }, ...all.filter(Boolean)); }

// What is drawn anew stays as it was for who uses it: the focus, what is unfolded; not while a finger is on it, or in a field.
export function redraw(place, draw) {
  const active = place.contains(document.activeElement) ? document.activeElement : null;
  if (place.querySelector(":active") || (active && active.matches("input, select"))) return;
  const focused = active && active !== place && active.matches("button, summary") ? nameOf(active) : null;
  const unfolded = new Set([...place.querySelectorAll("details[open] > summary")].map(nameOf));
  draw();
  for (const summary of place.querySelectorAll("details > summary")) if (unfolded.has(nameOf(summary))) summary.parentElement.open = true;
  if (focused) [...place.querySelectorAll("button, summary")].find((item) => nameOf(item) === focused)?.focus({ preventScroll: true });
}

function nameOf(element) {
  const row = element.closest("tr, article");
  return element.getAttribute("aria-label") || `${row ? row.getAttribute("aria-label") || row.firstElementChild.textContent : ""} ${element.textContent}`;
}

export function rows(table, caption, heads, lines) {
  table.replaceChildren(
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...heads.map((head, column) =>
      make("th", { scope: "col", class: lines.length && typeof lines[0][column] === "number" ? "number" : "" }, head)))),
    make("tbody", {}, ...lines.map((line) => make("tr", {}, ...line.map((value) =>
      make("td", typeof value === "number" ? { class: "number" } : {}, value instanceof Node ? value : String(value)))))));
}

export function facts(object) {
  return make("dl", { class: "pairs" }, ...Object.entries(object).flatMap(([name, value]) => pair(name, value !== null && typeof value === "object" ? JSON.stringify(value) : value)));
}

export function folded(text, ...inside) { return make("details", {}, make("summary", {}, text), ...inside); }
