"""Banks as seen from outside: simulators, processes of their own, that misbehave when told.

They know nothing of Cellpay's code: what both sides share is configuration (a field specification,
a key), as between real institutions.
"""
