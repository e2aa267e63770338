"""Risk rules: the language and the decision, shared by the control plane, which refuses broken
ones, and the cells, which run them."""
