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
export function lower(name, prefix) { return name.replace(prefix, "").toLowerCase().replaceAll("_", " "); }
export function buttons(...all) { return make("span", { class: "buttons" }, ...all.filter(Boolean)); }

// Not under somebody's finger: what has the focus is left as it is.
export function held(place) { return place.contains(document.activeElement); }

export function rows(table, caption, heads, lines) {
  table.replaceChildren(
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...lines.map((line) => make("tr", {}, ...line.map((value) =>
      make("td", typeof value === "number" ? { class: "number" } : {}, value instanceof Node ? value : String(value)))))));
}

export function facts(object) {
  return make("dl", {}, ...Object.entries(object).flatMap(([name, value]) => pair(name, value !== null && typeof value === "object" ? JSON.stringify(value) : value)));
}

export function folded(text, ...inside) { return make("details", {}, make("summary", {}, text), ...inside); }
