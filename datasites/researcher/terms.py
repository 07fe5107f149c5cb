"""What a round must be by the study's terms; the same rule by which every hospital checks a manifest. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from datasites.enclave.protocol import Parameter
from datasites.secagg.context import Context
from datasites.secagg.ring import safe_scale
from datasites.study.manifest import COUNTS_BOUND, UPDATE_BOUND, RoundManifest, Study, VectorTerm
from datasites.study.rounds import RingTerms


def manifest_of(
    terms: Study,
    parameters: Iterable[Parameter],
    context: Context,
    number: int,
    participants: tuple[str, ...],
    model_hash: str,
    ring: RingTerms | None = None,
) -> RoundManifest:
    """The manifest of round `number` of the study and epoch of `context`, for a model with these tensors.

    ring: of the released sum, in distributed mode.
    """
    train = number <= terms.rounds
    every = terms.evaluation.every
    interim = train and every > 0 and number % every == 0 and number < terms.rounds
    length = sum(int(np.prod(one.shape)) for one in parameters)
    vectors = []
    if train and ring is not None:
        vectors.append(VectorTerm(name="gradient", length=length, bound=ring.bound, scale=1 / ring.grid))
    lengths = {}
    if train and ring is None:
        lengths["update"] = (length, UPDATE_BOUND)
        lengths["weight"] = (1, 1.0)
    if interim or not train:
        lengths["counts"] = (2 * terms.evaluation.bins, COUNTS_BOUND)
    return RoundManifest(
        study=context.study,
        epoch=context.epoch,
        round=number,
        participants=participants,
        threshold=context.threshold,
        train=train,
        evaluate="interim" if interim else "no" if train else "final",
        weight_max=float(terms.cohort.max_patients),
        model_hash=model_hash,
        vectors=(
            *vectors,
            *(
                VectorTerm(name=name, length=length, bound=bound, scale=safe_scale(bound, len(participants)))
                for name, (length, bound) in lengths.items()
            ),
        ),
    )
