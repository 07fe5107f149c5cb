"""What all parties agree on before anything runs: study terms, data model, identities.

Imports no other room, neither torch nor Django: a manifest must mean the same on every machine that reads it.
"""
