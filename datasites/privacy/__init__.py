"""Bounds what a patient can lose: plan, noise, sampling, training, accounting, DP evaluation.

May use torch, opacus and dp_accounting, and `study`; knows nothing of hospitals, stores or secure aggregation. Events
are data (`events`); `accountant` alone loads what prices them, through `pricing`, and `renyi` adds up what all studies
on a population cost.
"""
