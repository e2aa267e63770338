"""Accounts: open, close, read; deposits and withdrawals, the recorded ways for money to move."""
