"""Fencing: step 6 of a payment's walk. A cell writes for a slot only while it owns it.

Keeps invariant 3 with design decision 3: the owner and epoch are read under a lock inside the
transaction that writes, so a deposed, paused or misled cell cannot commit.
"""
