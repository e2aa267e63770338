"""The console: a web page of the control plane, for people who watch it, act, and answer customers.

Everything it does goes through the same control API as `cellctl`, with the identity of whoever has
signed in; so roles, approvals and the audit log hold here as they do there.
"""
