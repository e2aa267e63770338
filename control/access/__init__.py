"""Who may do what: identities' roles, the role that each call needs, the calls of two persons."""
