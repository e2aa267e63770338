"""The audit log as a hash chain: each record carries the SHA-256 of the one before it."""
