// A payment's life, by any ID.
import { $, call, facts, folded, list, make, trying } from "./page.js";

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = new FormData(event.target).get("id").trim();
  if (location.hash === `#life/${encodeURIComponent(id)}`) trying(() => life(id));
  else location.hash = `#life/${encodeURIComponent(id)}`;
});

export async function life(id) {
  $("life").replaceChildren();
  document.querySelector("#search input").value = id;
  const found = await call(`/api/life/${encodeURIComponent(id)}`);
  const home = (epoch) => { const at = found.homes.find((item) => item.epoch === epoch); return at ? `cell ${at.owner}, epoch ${epoch}` : `epoch ${epoch}`; };
  const last = found.homes[found.homes.length - 1];
  $("life").replaceChildren(...[
    make("p", {}, `${found.kind} in slot ${found.slot}${last ? `, at home in cell ${last.owner} since epoch ${last.epoch}` : ""}.`),
    make("dl", { class: "pairs" }, ...[["trace", traces(found.traces)], ["webhooks", webhooks(found.steps)], ["risk", risk(found)]]
      .flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)])),
    make("ol", { class: "steps" }, ...found.steps.map((step) => make("li", { class: step.what },
      make("time", { datetime: step.time }, step.time),
      make("div", {}, make("strong", {}, summary(step)), step.detail.epoch ? ` · written by ${home(step.detail.epoch)}` : ""),
      folded("all fields", facts(step.detail)))))].filter(Boolean));
}

function traces(found) {
  if (!found.length) return "none: nothing was traced";
  return make("span", {}, ...found.flatMap((trace, number) => [number ? ", " : "", trace.url
    ? make("a", { href: trace.url, target: "_blank", rel: "noopener noreferrer" }, trace.trace_id)
    : make("code", {}, trace.trace_id)]));
}

function webhooks(steps) {
  const found = steps.filter((step) => step.what === "delivery");
  return found.length ? list(found.map((step) => `${step.detail.event_type} ${step.detail.state}`)) : "none: the merchant has no endpoint, or the event is on its way";
}

function risk(found) {
  const said = found.steps.filter((step) => ["challenge", "review", "decision"].includes(step.what));
  if (said.length) return list(said.map((step) => step.what === "decision" ? `decided: ${step.detail.action}` : `${step.what} ${step.detail.state}`));
  return found.steps.some((step) => step.what === "order") ? "let through: nothing was challenged, reviewed or denied" : "–";
}

function summary(step) {
  const d = step.detail;
  const money = step.shown || "";
  if (step.what === "order") return `Order of ${money} by ${d.merchant_id} for ${d.payer_id}: ${d.state}`;
  if (step.what === "payment") return `Payment of ${money}${d.refunded ? `, ${d.refunded} minor units of it refunded` : ""}`;
  if (step.what === "refund") return `Refund of ${money}: ${d.state}`;
  if (step.what === "charge") return `Charge of ${money} from a card or bank account: ${d.state} ${d.reason}`;
  if (step.what === "payout") return `Payout of ${money}: ${d.state} ${d.reason}`;
  if (step.what === "attempt") return `Bank ${d.channel} asked for ${d.operation} of ${money}: ${d.state} ${d.reason}`;
  if (step.what === "entry") return `Entry of ${d.amount > 0 ? "+" : ""}${d.amount} minor units in ${d.account_id}, balance ${d.balance_after}`;
  if (step.what === "event") return `Event ${d.type}${d.published ? ", published" : ", waits to be published"}`;
  if (step.what === "delivery") {
    const next = d.state === "pending" ? `, next at ${d.next_attempt_at}` : "";
    return `Webhook ${d.event_type}: ${d.state} after ${d.attempts} attempts${next} ${d.last_error}`;
  }
  if (step.what === "transfer") return `Transfer of ${money} from ${d.payer_id} to ${d.payee_id}: ${d.state}`;
  if (step.what === "decision") return `Risk decided: ${d.action} ${d.reasons}`;
  if (step.what === "challenge") return `Challenge: ${d.state} after ${d.tries} wrong codes`;
  if (step.what === "review") return `Review: ${d.state}${d.decided_by ? `, decided by ${d.decided_by}: ${d.note}` : ""}`;
  if (step.what === "branch") return `The payee’s side: ${d.state}`;
  return `${step.what} ${money}`;
}
