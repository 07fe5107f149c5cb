"""The manifest of a round, by the rule by which every hospital checks it (`study.rounds`). Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from datasites.secagg.epoch_terms import EpochTerms
from datasites.study.manifest import RoundManifest, StudyTerms
from datasites.study.rounds import round_terms
from datasites.study.tensors import Parameter


def manifest_of(
    terms: StudyTerms,
    parameters: Iterable[Parameter],
    context: EpochTerms,
    round: int,
    participants: tuple[str, ...],
    model_hash: str,
) -> RoundManifest:
    """Return the manifest of `round` of the study and epoch of `context`, for a model with these tensors."""
    dimension = sum(int(np.prod(one.shape)) for one in parameters)
    holds = round_terms(terms, round, dimension=dimension, participants=len(participants))
    return RoundManifest(
        study=context.study,
        epoch=context.epoch,
        round=round,
        participants=participants,
        threshold=holds.threshold,
        train=holds.train,
        evaluate=holds.evaluate,
        weight_max=holds.weight_max,
        model_hash=model_hash,
        vectors=holds.vectors,
        shared=holds.shared,
    )
