"""Banks as seen from outside: simulators, processes of their own, that misbehave when told.

They know nothing of Cellpay's code: what both sides share is configuration (a field specification,
a key), as between real institutions.

`model` is what a bank is asked and says, `behaviour` how it misbehaves, `book` its memory of
effects, `statement` the day's rows with chosen errors; `bank` joins them, whatever the tongue. A
tongue (`iso8583`, …) carries it over the wire; `control` is the API by which tests and drills set
and question it; `serve` is the process.
"""
