"""The level of degradation of a cell: by hand, or by load with hysteresis."""
