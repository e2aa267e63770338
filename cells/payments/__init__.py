"""Payments and refunds: steps 3 and 5 of a payment's walk."""
