// The books against the banks': days, cases that two people decide, breaks.
import { $, button, buttons, call, can, day, flag, folded, make, me, redraw, rows, short, trying, when } from "./page.js";

const GOOD = { done: true, matched: null, waiting: null, quarantined: false };

export async function reconciliation() {
  const state = $("break-state").value;
  const found = await call(`/api/reconciliation?state=${encodeURIComponent(state)}`);
  redraw($("reconciled"), () => draw(found));
  rows($("breaks"), found.breaks.length ? `Oldest first${found.more.breaks ? ": the oldest hundred" : ""}` : "None",
    ["break", "day", "channel", "what", "amount", "state", "note"],
    found.breaks.map((item) => [item.break_id, day(item.clearing_date), item.channel, `${item.break_class}, ${item.reason}`, item.shown, item.state, item.note || item.resolution || "–"]));
}

function draw(found) {
  rows($("runs"), found.runs.length ? "Days, the newest first" : "No day has been asked for",
    ["channel", "day", "state", "lines", "open", "cases", "adjusted", "matched later", "touched", "act"],
    found.runs.map((run) => [run.channel, day(run.clearing_date),
      make("span", {}, flag(run.state, GOOD[run.state] ?? null), run.reason ? ` ${run.reason}` : ""),
      Number(run.lines), Number(run.open), Number(run.cases), Number(run.adjusted), Number(run.matched_later), when(run.touch_time), again(run)]));
  rows($("cases"), found.cases.length ? `Breaks that people decide${found.more.cases ? ": the oldest hundred" : ""}` : "No case waits",
    ["break", "day", "channel", "what", "amount", "state", "propose, decide"],
    found.cases.map((item) => [item.of_break.break_id, day(item.of_break.clearing_date), item.of_break.channel,
      make("span", {}, `${item.of_break.break_class}, ${item.of_break.reason} `, sides(item.of_break)), item.of_break.shown, progress(item), acts(item)]));
}

function sides(item) {
  return folded("both sides", make("pre", {}, `ours: ${item.ours || "nothing"}\ntheirs: ${item.theirs || "nothing"}`));
}

function progress(item) {
  if (item.state !== "proposed") return item.state;
  return `${item.proposal} proposed by ${short(item.maker)}: ${item.maker_reason}`;
}

function acts(item) {
  const id = item.of_break.break_id;
  const one = (text, act, danger, what = text) => button(text, { title: `${what} ${id}, ${item.of_break.shown}?`, name: `${what} ${id}`,
    path: `/api/cases/${encodeURIComponent(id)}/${act}`, danger, said: (done) => `${done.of_break.break_id}: ${done.state}`, after: reconciliation });
  if (["opened", "rejected"].includes(item.state) && can("operator")) return buttons(one("post", "adjust", false, "propose to post"), one("dismiss", "dismiss", true, "propose to dismiss"));
  if (item.state === "proposed" && item.maker === me.id) return "Somebody else decides.";
  if (item.state === "proposed" && can("approver")) return buttons(one("approve", "approve", false), one("reject", "reject", true));
  return "";
}

function again(run) {
  if (!can("operator")) return "";
  return button("run again", { title: `Fetch ${run.clearing_date} of ${run.channel} anew, and match it?`, name: `run ${run.channel} ${run.clearing_date} again`,
    path: `/api/reconciliation/${encodeURIComponent(run.channel)}/${encodeURIComponent(run.clearing_date)}`, quiet: true, said: (done) => `${done.channel} ${done.clearing_date}: ${done.state}`, after: reconciliation });
}

$("break-state").addEventListener("change", () => trying(reconciliation));
$("run").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  trying(async () => {
    const path = `/api/reconciliation/${encodeURIComponent(form.get("channel"))}/${encodeURIComponent(form.get("day"))}`;
    await call(path, { reason: form.get("reason") });
    event.target.reset();
    await reconciliation();
  });
});
