// The console's page: who is signed in, which page is shown, and what keeps it live.
import { $, call, can, flag, make, me, rows, tell, trying, whenSignedOut } from "./page.js";
import { channels, policies } from "./policies.js";
import { drills } from "./drills.js";
import { life } from "./life.js";
import { mesh } from "./mesh.js";
import { approvals, operations } from "./operations.js";
import { reconciliation } from "./reconciliation.js";
import { risk } from "./risk.js";

// Asked for while they are looked at; the others are pushed.
const ASKED = { policies, channels, reconciliation, risk };
const ASKED_EVERY_MS = 4000;
let olderToken = "";
let source = null;
let overview = null;

// ---- signing in and out

function signedOut(oidc) {
  if (source) source.close();
  source = null;
  overview = null;
  document.querySelector("nav").hidden = true;
  $("who").hidden = true;
  for (const page of document.querySelectorAll(".page")) page.hidden = true;
  $("page-signin").hidden = false;
  $("oidc").hidden = !oidc;
}
whenSignedOut(signedOut);

async function enter() {
  const answer = await fetch("/api/me");
  const said = await answer.json();
  if (!answer.ok) { signedOut(said.oidc); return; }
  me.token = said.token;
  me.name = said.name;
  me.id = said.spiffe_id;
  me.roles = (said.roles || []).map((role) => role.replace("ROLE_", "").toLowerCase());
  $("who-name").textContent = `${me.name} (${me.roles.join(", ") || "no roles"})`;
  for (const place of document.querySelectorAll("[data-role]")) place.hidden = !can(...place.dataset.role.split(" "));
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
  await fetch("/signout", { method: "POST", headers: { "x-console-token": me.token } });
  tell("Signed out.");
  signedOut(false);
});

// ---- what is live

function listen() {
  if (source) source.close();
  source = new EventSource("/api/events");
  source.addEventListener("overview", (event) => { overview = JSON.parse(event.data); draw(); });
  source.addEventListener("signedout", () => signedOut(false));
  let broken = false;
  source.onerror = () => { broken = true; tell("The console does not answer; trying again."); };
  source.onopen = () => { if (broken) tell(""); broken = false; };
}

function draw() {
  if (overview === null) return;
  const page = pageNow();
  if (page === "mesh") mesh(overview);
  if (page === "operations") { operations(overview.operations); approvals(overview.approvals); }
  if (page === "drills") drills(overview.drills);
}

function pageNow() { return (location.hash || "#mesh").slice(1).split("/")[0]; }

function turn() {
  const page = pageNow();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${page}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const section of document.querySelectorAll(".page")) section.hidden = section.id !== `page-${page}`;
  draw();
  if (page in ASKED) trying(ASKED[page]);
  if (page === "audit") trying(() => audit(""));
  if (page === "life" && location.hash.includes("/")) trying(() => life(decodeURIComponent(location.hash.split("/")[1])));
}
addEventListener("hashchange", turn);
setInterval(() => {
  const page = pageNow();
  if (source && page in ASKED && !document.hidden && !$("ask").open) trying(ASKED[page]);
}, ASKED_EVERY_MS);

// ---- the audit log

async function audit(pageToken) {
  const found = await call(`/api/audit?page_token=${encodeURIComponent(pageToken)}`);
  rows($("audit"), pageToken ? "Older" : "Newest first", ["when", "who", "what", "verdict", "why"],
    found.records.map((item) => [item.time, item.actor, make("span", {}, item.action, " ", make("code", {}, item.detail)),
      flag(item.verdict, item.verdict.startsWith("allowed")), item.reason]));
  olderToken = found.next_page_token;
  $("older").hidden = !olderToken;
}
$("older").addEventListener("click", () => trying(() => audit(olderToken)));
$("verify-audit").addEventListener("click", () => trying(async () => {
  const found = await call("/api/audit/verify");
  $("chain").textContent = found.ok ? `The chain holds: ${found.records} records.` : `Broken at ${found.broken_audit_id}: ${found.problem}`;
}));

enter();
