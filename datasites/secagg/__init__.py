"""Hides one hospital in the sum: secure aggregation with dropouts (Bonawitz et al. 2017, batched setup).

Uses numpy and cryptography, and `study`; pure state machines without I/O. Imports neither torch nor other rooms.
"""
