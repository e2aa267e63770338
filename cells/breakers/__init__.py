"""Breakers around what a cell asks outside of itself; policies tune them and force them."""
