"""Decisions of two people that are not about a case: wider budgets, undone withdrawals, what a restore has lost."""
