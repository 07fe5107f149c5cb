"""What all parties agree on before anything runs: study terms, data model, identities.

Imports no other room, neither torch nor Django: a manifest must mean the same on every machine that reads it.

    >>> from datasites.study.survivors import honest_contributors
    >>> honest_contributors(hospitals=10, threshold=9, colluders=2, one_list=True)  # in any sum that can be opened
    7
"""
