"""Transfers: one transaction inside a cell, TCC across cells (step 5b of a payment's walk).

rules.py        what each side may decide
coordinator.py  drives one transfer to its end; any driver may, at any time
service.py      the payee's side, behind ParticipantService
worker.py       recovery: transfers whose driver is gone are driven by whoever owns the slot
"""
