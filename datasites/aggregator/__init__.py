"""Adds up and makes the next model: epochs, rounds, secure sum, strategies. Sees masked vectors and sums."""
