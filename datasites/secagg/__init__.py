"""Hides one hospital in the sum: secure aggregation with dropouts, after Bonawitz et al. (CCS 2017).

Their first two rounds (keys, shares) are done once per *epoch* for many rounds; after that a round is two waves: masked
vectors, then shares for the hospitals that dropped out and for those that remain. Read in this order:

    epoch_terms  the terms all agree on: who, threshold, colluders, rounds       threshold, graph: why they are safe
    messages     the messages, typed and signed                                  epoch: a checked enrolment
    member       the hospital: one method per message                            setup, state, journal: behind it
    aggregator   the party that adds                                             aggregator_state, unmasking: behind it
    ring         fixed-point encoding modulo 2**32                               masks, shares: the primitives

What it gives: only sums over at least `EpochTerms.honest_contributors` of the honest hospitals in a round can be
opened, if at most the declared number of hospitals collude with the aggregator and each hospital's journal is intact
(see `journal` for what a restored backup means). What it does not give: protection against poisoned updates, or privacy
of the sum itself, which is what differential privacy is for.

Uses numpy and cryptography, and `study`; pure state machines, with I/O only in `journal`. Imports neither torch nor
other rooms.

    >>> from datasites.secagg.threshold import choose_threshold
    >>> choose_threshold(hospitals=10, colluders=2)  # answers without which no sum opens
    7
"""
