"""Orders: what a merchant asks a payer for. An order lives with its payer."""
