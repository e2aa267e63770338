"""May this proposal or decision be made? Pure."""

from __future__ import annotations

from typing import NamedTuple

from control.reconciliation.model import TRANSITIONS, Case, CaseEvent, CaseState, Proposal


class No(NamedTuple):
    reason: str
    message: str


def propose(case: Case, proposal: Proposal) -> No | None:
    if _after(case, CaseEvent.PROPOSE) is None or case.of.state != "case":
        return No("CASE_NOT_OPEN", f"the case is {case.state}, its break {case.of.state}")
    if proposal is Proposal.ADJUST and not case.of.amount:
        return No("NOTHING_TO_POST", "the break changes nothing of what the bank owes; dismiss it")
    return None


def decide(case: Case, checker: str, *, approve: bool) -> No | None:
    """Two different people, always: reconciliation posts money that nobody asked for."""
    event = CaseEvent.APPROVE if approve else CaseEvent.REJECT
    if _after(case, event) is None or case.of.state != "case":
        return No("CASE_NOT_PROPOSED", f"the case is {case.state}, its break {case.of.state}")
    if checker == case.maker:
        return No("CASE_IS_YOUR_OWN", f"{checker} proposed it; a second person must decide")
    return None


def _after(case: Case, event: CaseEvent) -> CaseState | None:
    return TRANSITIONS[CaseState(case.state)].get(event)


# What an approved proposal makes of its break.
AFTER_APPROVAL = {Proposal.ADJUST: "adjusting", Proposal.DISMISS: "closed"}
