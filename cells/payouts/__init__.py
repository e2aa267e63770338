"""Payouts: a user's or merchant's money sent to a card or bank account.

model.py     states, events and what follows what, as a table
rules.py     commands over the book: hold first, post when approved, release when surely failed
driver.py    asks banks, and writes down what they say
service.py   proto to model and back
"""
