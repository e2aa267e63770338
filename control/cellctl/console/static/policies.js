// Policies, what processes do by them, breakers, and how the channels fare.
import { $, button, buttons, call, can, figure, flag, folded, list, make, redraw, rows, short } from "./page.js";

const WORDS = { open: "open", half_open: "half open", closed: "closed" };
const HEALTH = { open: "breaker open", trying: "breaker tries", quiet: "quiet", sound: "sound", failing: "failing" };

export async function policies() {
  const found = await call("/api/policies");
  redraw($("page-policies"), () => draw(found));
}

function draw(found) {
  rows($("policies"), found.policies.length ? "In force in the whole mesh, or in the cells that a document names" : "No policy: the defaults hold",
    ["kind", "name", "document", "by", "why", "in force"],
    found.policies.map((item) => [item.kind, item.name,
      item.alarm ? flag(item.alarm, false) : item.document === null ? "too long to show" : make("code", {}, JSON.stringify(item.document)),
      short(item.actor), item.reason,
      flag(item.not_yet_by.length ? `not yet in ${list(item.not_yet_by)}` : `in ${item.applied_by.length} processes`, item.not_yet_by.length ? null : true)]));
  rows($("breakers"), "Of each dependency, in each cell", ["dependency", ...found.cells.map((cell) => `cell ${cell}`), "forced", "act"],
    found.breakers.map((row) => [row.dependency, ...found.cells.map((cell) => at(row.cells[cell])), forced(row), breakerButtons(row.dependency, found.cells, policies)]));
  rows($("reports"), "Levels of degradation, limits, refusals", ["process", "level", "features", "limit", "refused"],
    found.reports.map((item) => [item.process, item.degradation_level,
      list(Object.entries(item.features).map(([name, mode]) => `${name} ${mode}`)), item.concurrency_limit || "–",
      list(Object.entries(item.refused).map(([reason, count]) => `${count} ${reason}`))]));
  levels(found.cells);
}

function levels(cells) {
  const place = $("levels");
  place.hidden = !can("operator", "drill");
  const where = [{ value: "mesh", text: "the whole mesh" }, ...cells.map((cell) => ({ value: cell, text: `cell ${cell}` }))];
  const select = $("level-where");
  const chosen = select.value || "mesh";
  select.replaceChildren(...where.map((item) => make("option", { value: item.value }, item.text)));
  select.value = chosen;
  const set = () => $("level-buttons").replaceChildren(...[0, 1, 2, 3].map((level) => button(`level ${level}`, {
    title: `Degradation level ${level} in ${select.selectedOptions[0].textContent}?`,
    path: `/api/degradation/${encodeURIComponent(select.value)}/${level}`, danger: level > 0, quiet: level === 0,
    said: (done) => `degradation/${done.name} is at revision ${done.revision}`, after: policies })));
  select.onchange = set;
  set();
}

function at(cell) {
  if (!cell) return "–";
  const several = new Set(cell.processes.map((item) => item.state)).size > 1;
  const text = several ? cell.processes.map((item) => `${item.process} ${WORDS[item.state]}`).join(", ") : WORDS[cell.state];
  return flag(text, cell.state === "closed" ? true : cell.state === "half_open" ? null : false);
}

function forced(row) {
  return row.forced_by.length ? make("span", {}, ...row.forced_by.map((item) =>
    make("span", { class: "warn" }, `${item.force} in ${list(item.cells) === "–" ? "the mesh" : list(item.cells)}: ${item.reason} (${short(item.actor)}) `))) : "–";
}

function breakerButtons(dependency, cells, after) {
  if (!can("operator", "drill")) return "";
  const places = [{ value: "", text: "The whole mesh" }, ...cells.map((cell) => ({ value: cell, text: `Cell ${cell}` }))];
  const one = (text, act, danger) => button(text, { title: `${text} the breaker of ${dependency}?`, name: `${text} ${dependency}`,
    path: `/api/breakers/${encodeURIComponent(dependency)}/${act}`, places, danger, quiet: !danger,
    said: (done) => `breakers/${done.name} is at revision ${done.revision}`, after });
  return buttons(one("force open", "open", true), one("force closed", "closed", true), one("let go", "auto", false));
}

export async function channels() {
  const found = await call("/api/channels");
  const place = $("channels");
  redraw(place, () => place.replaceChildren(
    found.channels.length ? "" : make("p", {}, "No channel is known: none is configured, or none was asked yet."),
    found.error ? make("p", { class: "trouble" }, `Reconciliation: ${found.error}`) : "",
    ...found.channels.map((item) => channel(item, found.cells))));
}

function channel(item, cells) {
  const answers = item.answers;
  const run = item.reconciliation;
  const good = { sound: true, quiet: null, trying: null }[item.health] ?? false;
  const lines = [
    ["answers in the last minute", answers ? String(answers.answers) : "–"],
    ["approved", answers ? figure(answers.approved_percent, " %") : "–"],
    ["neither failed nor unknown", answers ? figure(answers.sound_percent, " %") : "–"],
    ["since the cells’ start", answers ? list(Object.entries(answers.verdicts_since_start).map(([verdict, count]) => `${count} ${verdict}`)) : "–"],
    ["reconciliation", run ? `${run.clearing_date}: ${run.state}, ${run.open} open, ${run.cases} cases` : "–"],
  ];
  const states = item.breaker ? cells.flatMap((cell) => item.breaker.cells[cell] ? [`${cell}: `, at(item.breaker.cells[cell]), " "] : []) : [];
  return make("article", { class: "card", "aria-label": `channel ${item.channel}` },
    make("h3", {}, `${item.channel} `, flag(HEALTH[item.health], good)),
    make("dl", { class: "pairs" }, ...lines.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]),
      make("dt", {}, "breaker"), make("dd", {}, ...(states.length ? states : ["not used yet"]), item.breaker && item.breaker.forced_by.length ? forced(item.breaker) : "")),
    item.policies.length ? folded(`${item.policies.length} ${item.policies.length === 1 ? "policy" : "policies"}`,
      ...item.policies.map((policy) => make("pre", {}, `${policy.name}, revision ${policy.revision}\n${JSON.stringify(policy.document, null, 1)}`)))
      : make("p", { class: "faint" }, "No policy names it: it is asked on the defaults."),
    breakerButtons(`channel:${item.channel}`, cells, channels) || null);
}
