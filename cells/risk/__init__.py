"""Risk, in the path of a payment (step 4 of its walk): what is known of a request, what the rules
say of it, and what becomes of those that are not simply allowed."""
