"""Bounds what a patient can lose: plan, noise, sampling, training, accounting, DP evaluation.

May use torch, opacus and dp_accounting, and `study`; knows nothing of hospitals, stores or secure aggregation.
"""
