// What risk wants a person to look at, and what it decided of a user.
import { $, button, buttons, call, facts, flag, folded, list, make, redraw, rows, short, trying, when } from "./page.js";

const GOOD = { open: null, passed: true, used: true, failed: false, expired: null };
const WORDS = { passed: "approved, not used yet", used: "approved and used", failed: "rejected" };

export async function risk() {
  const all = $("reviews-all").checked ? "&all" : "";
  const found = await call(`/api/reviews?user_id=${all}`);
  redraw($("reviewed"), () => rows($("reviews"), found.reviews.length ? `Oldest first${found.more ? ": the oldest hundred" : ""}` : "Nothing waits for a person",
    ["since", "user", "request", "why", "state", "decide"],
    found.reviews.map((item) => [when(item.create_time), item.user_id,
      make("span", {}, `${item.operation} of ${item.shown} `, item.payee_id ? `to ${item.payee_id} ` : "", item.subject_id ? life(item.subject_id) : ""),
      make("span", {}, list(item.reasons), " ", folded("what was known", make("p", {}, `rules: ${list(item.rules)}`), known(item.facts))),
      make("span", {}, flag(WORDS[item.state] || item.state, GOOD[item.state] ?? null), item.decided_by ? ` by ${short(item.decided_by)}: ${item.note}` : item.state === "open" ? make("span", {}, " until ", when(item.expire_time)) : ""),
      ["open", "passed"].includes(item.state) ? acts(item) : ""])));
}

function known(text) {
  try { return facts(JSON.parse(text)); } catch { return make("p", {}, text); }
}

export function life(id) { return make("a", { href: `#life/${encodeURIComponent(id)}` }, id); }

function acts(item) {
  const one = (act, danger) => button(act, { title: `${act} ${item.operation} of ${item.shown} by ${item.user_id}?`, name: `${act} ${item.review_id}`,
    path: `/api/reviews/${encodeURIComponent(item.review_id)}/${act}`, danger, said: (done) => `${done.review_id}: ${WORDS[done.state] || done.state}`, after: risk });
  return item.state === "open" ? buttons(one("approve", false), one("reject", true)) : buttons(one("reject", true));
}

$("reviews-all").addEventListener("change", () => trying(risk));
$("decisions-of").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = new FormData(event.target).get("user").trim();
  trying(async () => {
    const found = await call(`/api/decisions?user_id=${encodeURIComponent(user)}`);
    rows($("decisions"), found.decisions.length ? `Of ${user}, newest first` : `Nothing of ${user} was challenged, reviewed or denied`,
      ["when", "request", "decision", "why", "rules", "about"],
      found.decisions.map((item) => [when(item.created_at), `${item.operation} of ${item.shown}${item.payee_id ? ` to ${item.payee_id}` : ""}`,
        flag(item.action, item.action === "deny" ? false : null), item.reasons.replaceAll(",", ", "), item.rules.replaceAll(",", ", ") || "–", item.subject_id ? life(item.subject_id) : "–"]));
  });
});
