"""What a round's manifest must say: what the approved study calls for, each term of it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from datasites.hospital.cases.case import OpenCase
from datasites.study.errors import DatasitesError
from datasites.study.manifest import RoundManifest, SharedNoise
from datasites.study.rounds import round_terms


class RoundRefused(DatasitesError):
    """A manifest does not follow from the approved study; this hospital sits the round out."""


def check_manifest(case: OpenCase, manifest: RoundManifest, dimension: int) -> None:
    """Raise `RoundRefused` unless `manifest` is one that the approved study calls for.

    Rounds 1..n train (and may hold an interim evaluation where the study says so); round n+1 is the final evaluation.
    dimension: number of model parameters.
    """
    study, round = case.study, manifest.round
    if round > study.rounds + 1:
        raise RoundRefused(f"round {round}: the study has {study.rounds} and a final evaluation")
    holds = round_terms(study, round, dimension=dimension, participants=len(manifest.participants))
    for name, wanted, found in (
        ("study", case.row.study_hash, manifest.study),
        ("train", holds.train, manifest.train),
        ("evaluate", holds.evaluate, manifest.evaluate),
        ("threshold", holds.threshold, manifest.threshold),
        ("weight_max", holds.weight_max, manifest.weight_max),
        *_differences("shared", holds.shared, manifest.shared),
        *((f"plan.{name}", planned, stated) for name, planned, stated in _planned(case, manifest.shared)),
        ("vectors", [(t.name, t.length) for t in holds.vectors], [(t.name, t.length) for t in manifest.vectors]),
        ("bound", [t.bound for t in holds.vectors], [t.bound for t in manifest.vectors]),
        ("scale", [t.scale for t in holds.vectors], [t.scale for t in manifest.vectors]),
    ):
        if wanted != found:
            raise RoundRefused(
                f"round {round}: {name} is {found}, the approved study calls for {wanted}; "
                "run the study as it was approved"
            )


def _differences(
    name: str, wanted: SharedNoise | None, found: SharedNoise | None
) -> Iterator[tuple[str, object, object]]:
    """Yield the terms of shared noise one by one, so that a refusal names the one that differs."""
    if wanted is None or found is None:
        yield name, wanted, found
        return
    for field in SharedNoise.model_fields:
        yield f"{name}.{field}", getattr(wanted, field), getattr(found, field)


def _planned(case: OpenCase, shared: SharedNoise | None) -> Iterator[tuple[str, object, object]]:
    """Yield what the approved plans, which are charged, rest on, and what the round says it does (I17)."""
    plan, counts = case.plan, case.evaluation
    yield "mode", plan.mode, "local" if shared is None else "distributed"
    if shared is not None:
        yield "noise_multiplier", plan.noise_multiplier, shared.noise_multiplier
        yield "clip", plan.clip, shared.clip
        yield "sampling_rate", plan.sampling_rate, shared.sampling_rate
        yield "honest", plan.honest, shared.honest
        yield "evaluation", counts.final_multiplier, shared.evaluation_noise_multiplier
        yield "honest", counts.honest, shared.honest
