"""Compliance that executes: agreements, Cedar rules and the engine that decides by them.

Imports nothing of `datasites` but `study`.
"""
