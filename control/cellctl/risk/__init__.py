"""`cellctl risk …`: rules, lists, features and models of risk, and what they do."""
