"""What two people decide that is no case: wider budgets, undone withdrawals, what a restore has lost."""
