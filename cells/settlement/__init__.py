"""Settlement: collection accounts are swept to the merchants' homes, by transfers."""
