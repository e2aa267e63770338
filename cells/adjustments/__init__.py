"""Adjustments: what finance posts to make the books agree with a bank's (AdjustmentsService)."""
