// Drills: the last run of each, and its report.
import { $, call, facts, flag, make, redraw, rows, trying, when } from "./page.js";

export function drills(found) {
  const table = $("drills");
  if (!Array.isArray(found)) { table.replaceChildren(make("caption", {}, found ? found.error : "")); return; }
  redraw(table, () => rows(table, found.length ? "Last run of each" : "No drill has run here", ["name", "fault", "state", "verdict", "outage", "report"],
    found.map((item) => [item.spec.name, item.spec.fault.replace("FAULT_", "").toLowerCase(), item.state.replace("STATE_", "").toLowerCase(),
      item.verdict ? flag(item.verdict, item.verdict === "held") : "–", `${item.outage_ms} ms`,
      item.report ? make("button", { type: "button", class: "quiet", "aria-label": `read the report of ${item.spec.name}`, onclick: () => trying(() => report(item.spec.name)) }, "read") : ""])));
}

async function report(name) {
  const { report: found } = await call(`/api/drills/${encodeURIComponent(name)}/report`);
  const place = $("drill-report");
  place.hidden = false;
  place.replaceChildren(...(found ? shown(found) : [make("p", {}, "Its report is not on this machine.")]));
  place.focus();
  place.scrollIntoView({ block: "start" });
}

function shown(found) {
  const checks = make("table");
  rows(checks, "The steady state, by payments", ["phase", "payments", "made", "p99", "books", "holds"],
    found.checks.map((check) => [check.phase, check.payments, `${(100 * check.success_ratio).toFixed(2)} %`, `${check.p99_ms} ms`, check.books,
      flag(check.holds ? "yes" : `no: ${check.why}`, check.holds)]));
  const cells = Object.entries(found.outage_ms_by_home_cell).map(([cell, ms]) => `${cell} ${ms} ms`).join(", ");
  return [
    make("h3", {}, `${found.name}, run ${found.run}: `, flag(found.verdict || found.state, found.verdict === "held")),
    make("p", {}, `${found.fault.replaceAll("_", " ")}, by ${found.actor}: ${found.reason}`),
    make("p", {}, `Outage of the users hit hardest: ${found.outage_ms} ms${cells ? ` (by home cell: ${cells})` : ""}; `
      + `${(100 * found.error_budget_burnt).toFixed(4)} % of a month’s error budget burnt.`),
    found.cut_short ? make("p", { class: "warn" }, `Healed before its time: ${found.cut_short}`) : null,
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Checks" }, checks),
    make("h4", {}, "What happened"),
    make("ol", { class: "steps" }, ...found.timeline.map((item) => make("li", {}, when(item.time), make("div", {}, make("strong", {}, item.state.replaceAll("_", " ")), item.note ? ` ${item.note}` : "")))),
    make("details", {}, make("summary", {}, "what was asked for"), facts(found.spec)),
  ].filter(Boolean);
}
