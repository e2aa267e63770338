"""Reconciliation: the books agree with the banks' every morning, or a person knows why not.

Step 9 of a payment's walk, a day later. Keeps invariant 1 against the outside world: what the
channel accounts say a bank owes us is what the bank's statement says, or the difference is a break
with a name, an age and somebody who answers for it (docs/reconciliation.md).
"""
