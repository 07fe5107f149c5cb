"""Who may do what: accounts and sign-ins, the roster of parties, agreements. Looks at no patient's row."""
