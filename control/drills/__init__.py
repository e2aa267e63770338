"""Drills: planned faults on the local mesh, healed whatever happens, each with a report.

A drill's walk: 1 `service` authorises, audits, writes the plan → 2 `runner`, a process of its own,
checks the steady state → 3 `injectors` write down how to undo a fault, then do it → 4 `rules` judge
what `probe` measures → 5 `undoing` heals → 6 `report`. Whoever dies in between is followed by the
runner's watchdog, or by a controller (`keeper`), who heals by what was written down.
"""
