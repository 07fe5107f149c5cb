"""Adds up and makes the next model: epochs, rounds, secure sum, strategies. Sees masked vectors and sums.

>>> import numpy as np
>>> from datasites.aggregator.strategies import FedAvg
>>> FedAvg(learning_rate=0.5).next_model(np.array([1.0, 2.0]), mean_update=np.array([0.2, -0.2]))
array([1.1, 1.9])
"""
