"""Bounds what a patient can lose: plan, noise, sampling, training, accounting, DP evaluation.

May use torch, opacus and dp_accounting, and `study`; knows nothing of hospitals, stores or secure aggregation. Events
are data (`events`); `accountant` alone loads what prices them, through `pricing`, and `renyi` adds up what all studies
on a population cost.

    >>> from datasites.privacy.events import Charge
    >>> from datasites.privacy.pricing import Prices
    >>> steps = Charge(mechanism="poisson_sampled_gaussian", noise_multiplier=2.0, sampling_rate=0.1, count=100)
    >>> round(Prices().pld([(steps,)], delta=1e-5), 2)  # what a hundred steps cost a patient
    2.34
"""
