"""What becomes of requests that risk does not simply let through: challenges that a second factor
answers, reviews that a person decides, and what is kept of denials. All of it lives with the slot,
is written under its fence, and so survives a failover."""
