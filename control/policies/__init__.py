"""Policies as the control plane keeps them: written whole, checked, by compare-and-set, audited."""
