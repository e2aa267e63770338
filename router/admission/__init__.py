"""Who is let in: limits, shedding and switched-off features, before a cell's services.

Policies are compiled once a change into one decision a method (`rules`); without policies a call
costs a look at one attribute (`gate`).
"""
