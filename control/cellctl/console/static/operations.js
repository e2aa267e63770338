// Operations and what waits for a second person.
import { $, button, buttons, call, can, flag, make, me, redraw, rows, short, tell, trying } from "./page.js";

export function operations(found) {
  const place = $("operations-list");
  if (!Array.isArray(found)) { place.textContent = found ? found.error : ""; return; }
  redraw(place, () => draw(place, found));
}

function draw(place, found) {
  place.replaceChildren(...found.map((operation) => {
    const acts = can("operator") ? actsOf(operation) : [];
    return make("article", { class: "card", "aria-label": operation.operation_id },
      make("h3", {}, `${operation.kind} ${operation.cell} `, flag(operation.step.replace("_", " "), operation.step === "done")),
      make("p", {}, `${operation.operation_id}, by ${operation.actor}: ${operation.reason}`),
      make("details", {}, make("summary", {}, `${operation.moves.length} moves, ${operation.history.length} steps`),
        make("ol", {}, ...operation.history.map((step) => make("li", {}, `${step.time} ${step.step} ${step.note}`))),
        make("ol", {}, ...operation.moves.map((move) => make("li", {}, `slots ${move.slots}: ${move.source} → ${move.target}, epoch ${move.epoch}`)))),
      acts.length ? make("p", {}, buttons(...acts.map((act) => operate(act, operation.operation_id)))) : null);
  }));
  if (!found.length) place.append(make("p", {}, "No operation yet."));
}

function actsOf(operation) {
  if (["failed", "aborted", "rolled_back"].includes(operation.step)) return [];
  if (operation.step === "done") return operation.undone_by || !operation.moves.length ? [] : ["rollback"];
  if (operation.step === "paused") return ["resume", "abort"];
  return ["pause", "abort"];
}

function operate(act, id) {
  return button(act, { title: `${act} ${id}?`, path: `/api/operations/${encodeURIComponent(id)}/${act}`,
    danger: act !== "resume", name: `${act} ${id}`, said: (done) => `${done.operation_id}: ${done.step}` });
}

export function approvals(found) {
  const table = $("approvals");
  if (!Array.isArray(found)) { table.replaceChildren(make("caption", {}, found ? found.error : "")); return; }
  redraw(table, () => rows(table, found.length ? "What waited, or waits, for a second person" : "Nothing waits for a second person",
    ["what", "asked by", "state", "decide"],
    found.map((item) => [
      make("span", {}, item.action, " ", make("code", {}, item.parameters)),
      short(item.requester),
      item.state.replace("STATE_", "").toLowerCase() + (item.approver ? ` by ${short(item.approver)}: ${item.note}` : ""),
      nextOf(item),
    ])));
}

function nextOf(item) {
  const own = item.requester === me.id;
  if (item.state === "STATE_PENDING" && own) return "Somebody else decides.";
  if (item.state === "STATE_PENDING" && can("approver")) return buttons(decision("approve", item), decision("reject", item));
  if (item.state === "STATE_APPROVED" && own) return carryOut(item);
  return "";
}

function decision(act, item) {
  return button(act, { title: `${act} ${item.action}?`, path: `/api/approvals/${encodeURIComponent(item.approval_id)}/${act}`,
    danger: act === "reject", name: `${act} ${item.approval_id}`, said: said });
}

function said(done) { return `${done.approval_id}: ${done.state.replace("STATE_", "").toLowerCase()}`; }

// Its reason was given when it was asked for.
function carryOut(item) {
  return make("button", { type: "button", "aria-label": `carry out ${item.approval_id}`, onclick: () => trying(async () => {
    tell(said(await call(`/api/approvals/${encodeURIComponent(item.approval_id)}/carry-out`, { reason: item.note })));
  }) }, "carry out");
}
