"""What people of risk work with: their files, and records replayed under other rules."""
