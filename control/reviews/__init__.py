"""Reviews: requests that risk rules want a person to look at, listed and decided by operators.

They lie with their users' slots, so a decision is carried out by the slot's home, under its fence
(cells/risk/cases); here is who may decide, and the record of it.
"""
