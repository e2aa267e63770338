"""Merchants' public keys at their homes, our own keys, and the memory of nonces.

A key's row at its merchant's home is the truth; worker.py sees to it that etcd has a copy, by which
every cell verifies (router/signing). Nothing that can sign for a merchant is ever here.
"""
