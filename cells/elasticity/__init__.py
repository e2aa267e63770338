"""A cell that has as many processes as its load asks for, and no more.

What each process feels goes to the first one, which decides (rules.py), starts and ends the others
(cells/workers.py). A new one is warm before the mesh hears of it (warming.py); one that leaves is
unknown to the mesh before it ends. Keeps what every move keeps: no call fails for it.
"""
