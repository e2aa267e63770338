"""Signed requests: their canonical form, the rules of time and nonce, and the signatures.

A library alone: nothing is wired to it yet. docs/signing.md has the form for other languages, and
router/testdata/signing.json the test vectors.
"""
