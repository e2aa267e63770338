"""The ledger: step 6 of a payment's walk. Groups commands, fences, commits all they decide.

model.py    accounts, entries, events, outcomes: what a command may read and decide
records.py  how a noun's rows are loaded and written, set-based, whatever the noun
book.py     the rows of one group in memory; postings; asserts that money is conserved
store.py    one transaction: fence, load, decide, write
worker.py   lanes: adaptive groups, deadlines, bisection, retries
"""
