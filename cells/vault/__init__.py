"""The vault: cards and bank accounts that users register, and the keys that seal them.

What names an instrument at a bank is sealed before any command sees it and opened only for a
request to the bank; everywhere else there is its ID. docs/vault.md has the keys and the runbooks.
"""
