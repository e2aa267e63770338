"""Attacks, named after what the attacker wants; docs/security.md says which threat each answers.

All run on the mesh that the integration tests share, through its real edges, cells and controllers.
"""
