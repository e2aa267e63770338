"""The user-ID router: slot arithmetic, IDs that carry their slot, the client SDK, the guard.

Imports neither `cells` nor `control`, so that the client SDK can ship alone.
"""
