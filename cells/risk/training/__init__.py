"""How the example model is made: a simulated stream, its features, trees, and how well they do.

Nothing of it runs in a cell. docs/risk-model.md says what a simulated stream can show and what not.
"""
