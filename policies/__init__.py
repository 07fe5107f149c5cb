"""Compliance that executes: agreements, Cedar rules and the engine that decides by them.

Imports nothing of `datasites` but `study`.

    >>> from policies.engine import Engine
    >>> decision = Engine().decide({"action": "run_round"})  # without facts nothing is allowed
    >>> decision.allowed, decision.controls
    (False, ('facts',))
"""
