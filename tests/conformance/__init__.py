"""Every adapter of a kind of bank, against that kind's simulator."""
