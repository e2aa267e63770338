"""The local mesh: every real component of Cellpay as a process on free loopback ports.

One directory holds one mesh: its data, logs, certificates, settings and `mesh.json`, which says
what runs where. A process is only ever signalled by a PID whose start time is still the recorded
one, so a recycled PID is never hurt.
"""
