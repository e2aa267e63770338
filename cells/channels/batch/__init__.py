"""Payouts in files: gathered for a window, delivered, and answered by files that come later.

Nothing that matters is kept here. A payout that was taken is an attempt in the database before it
comes; what a dead process had gathered, whoever owns the slot next asks the bank about, by a status
request in a file of its own. The bank's promise carries it: a reference has one effect in however
many files it stands, and one that it was asked about and had never seen, it refuses from then on.
So a file that a paused process delivers late moves nothing (docs/clearing.md).

`model` is what stands in files, `pain` and `fixed` write and read them, `mailbox` carries them,
`rules` says what results mean, `channel` is the adapter.
"""
