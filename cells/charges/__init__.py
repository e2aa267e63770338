"""Charges: money pulled through a channel into a user's balance, and given back from there.

model.py     states, events and what follows what, as tables
rules.py     commands over the book: one charge's money moves once, whatever banks say and when
refunds.py   the same for refunds of charges to the card or account that they came from
driver.py    asks banks, and writes down what they say
service.py   proto to model and back
"""
