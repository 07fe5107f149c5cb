"""What a round holds, once: used to make a manifest and to check one. Pure arithmetic; no torch, no Django.

In distributed mode hospitals add their noise on one grid, so that the secure sum adds up what was priced to the last
step. `ring_terms` chooses grid and bound from public terms alone; both sides compute them and compare.

**Theorem (a distributed sum).** Let each survivor i of a round release v_i = round(cut(x_i) / grid) + N_i, modulo 2^32:
x_i is the sum of its sampled patients' clipped gradients, cut() clamps each coordinate to +-`RingTerms.cut`, and N_i is
discrete Gaussian noise of sd deviation / grid on each coordinate. Let z be the study's noise multiplier, q its sampling
rate and T its rounds. Then the sums over survivors, given all that colluders know, are (epsilon, delta)-DP for adding
or removing one patient of an honest hospital, if T Poisson-sampled Gaussian mechanisms of rate q and noise multiplier
z x `LATTICE` together are (epsilon, delta - `tail_delta`)-DP.

Assumed: at least m = `StudyTerms.honest` honest hospitals add their noise in each opened sum (`survivors`: at most c
colluders, threshold t; masks hold, against bounded adversaries); a patient moves x_i by at most clip x (1 +
`NORM_SLACK`) in L2 norm (`privacy.clipping`); the generator's bits are uniform, and the chances of noise are those of
the discrete Gaussian, which doubles give to a factor within 1 +- 2^-43 each (`privacy.noise`) and no price counts.

Proof. *Shift.* cut() is 1-Lipschitz and rounding moves a coordinate by half a step at most, so a patient moves the
vector of whole steps by an integer vector v of norm at most (clip (1 + slack) + sqrt(d) grid) / grid.
*Noise.* The honest part of a sum holds m discrete Gaussians of sd >= 4 steps; whatever else it holds is added on top.
Their sum has, at each point, the probability of a discrete Gaussian of sd s = z x sensitivity / grid up to a factor
within 1 +- 1e-60 per coordinate (Kairouz, Liu and Steinke 2021, arXiv:2102.06387).
*Lattice.* That discrete Gaussian is a continuous one of sd sqrt(s^2 - 4), post-processed: draw c from the latter around
v, then k from the discrete Gaussian of sd 2 on the integers around c, coordinate by coordinate (the convolution of
Peikert 2010, CRYPTO). The product of the two densities integrates over c to exp(-(k - v)^2 / 2 s^2) times a constant,
over sum_j exp(-(j - c)^2 / 8), which by Poisson's summation is the same for all c up to a factor within 1 +- 2e-34.
The second draw knows neither v nor the sample, so whatever divergence the discrete mechanism has, sampled, composed and
adaptive as it is, Gaussians of sd s sqrt(1 - 4 / s^2) have; and that is s x `LATTICE` or more, as s >= 64.
*Ring.* Encoded coordinates stay within +-bound, and n x bound is below 2^31 steps, so the sum modulo 2^32 is the sum.
The bound clamps only where noise exceeds 12 sd; `tail_delta` pays for that, and for the factors above. The same holds
for counts, with 1 for the clip and no slack.

Renyi divergences of whole orders need no `LATTICE`: no moment of the likelihood ratio of shifted discrete Gaussians is
above the continuous one's of the same sd (Canonne, Kamath and Steinke 2020, arXiv:2004.00010, proposition 5), and a
sampled mechanism's are sums of such moments. Prices use it all the same, so that one event serves both accountants. A
cap over many studies (the filter in `privacy.accountant`) holds for the mechanisms without their tails, so it is one of
epsilon at delta + the `tail_delta` of the distributed studies among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.manifest import (
    COUNTS_BOUND,
    HALF_RING,
    UPDATE_BOUND,
    EvaluationKind,
    SharedNoise,
    StudyTerms,
    VectorTerm,
)

#: Slack of the arithmetic that measures and sums clipped gradients: a patient moves a sum by at most clip x (1 + it).
NORM_SLACK = 2.0**-9
#: A hospital's own noise has at least this sd, in grid steps; the noise that the price relies on at least the second.
LEAST_OWN_STEPS, LEAST_TOGETHER_STEPS = 4.0, 64.0
#: Part of its noise multiplier at which discrete noise is priced as continuous noise; see the top of this file.
LATTICE = math.sqrt(1 - (2.0 / LEAST_TOGETHER_STEPS) ** 2)
#: Room between the clamp before the noise and the bound of the ring, in sd of a hospital's own noise. The price of a
#: chance has a factor of 1 + e^epsilon: at 10 sd it would take all of a delta of 1e-6 from 49 hospitals in 40 rounds at
#: epsilon 8; at 12 sd it takes nothing that shows.
TAIL_SD = 12.0
#: Coordinates that one sum may have at most, for the chance that one of them passes it.
_COORDINATES = 2.0**31
#: How far probabilities may be off per coordinate where discrete noise is taken for continuous, post-processed noise.
_SMOOTHING = 1e-33
#: Most of the sensitivity that rounding to the grid may add, as a part of the clip.
ROUNDING_SHARE = 0.01


class RingRefused(DatasitesError):
    """No grid and bound of the secure sum fit these terms; the message names the figure that would."""


class RingTerms(Agreed):
    """How one vector of a distributed release lies in the ring.

    grid: one step, a power of two. bound: largest absolute value of a coordinate, a whole number of steps. cut: the
    clipped sum is clamped to +-cut, whole steps, before its noise. deviation: sd of one hospital's noise. sensitivity:
    how far, in L2 norm, one patient moves the rounded sum. All in the units of the clip.
    """

    grid: Annotated[float, Field(gt=0)]
    bound: Annotated[float, Field(gt=0)]
    cut: Annotated[float, Field(gt=0)]
    deviation: Annotated[float, Field(gt=0)]
    sensitivity: Annotated[float, Field(gt=0)]

    def vector(self, name: str, length: int) -> VectorTerm:
        """Return the manifest's term of such a vector."""
        return VectorTerm(name=name, length=length, bound=self.bound, scale=1.0 / self.grid)


def ring_terms(
    *,
    clip: float,
    noise_multiplier: float,
    honest: int,
    hospitals: int,
    length: int,
    slack: float = NORM_SLACK,
    room: float | None = None,
    what: str = "gradients",
    remedy: str = "use a smaller model and fewer hospitals",
) -> RingTerms:
    """Return the grid and bound for vectors of `length` coordinates, one from each of `hospitals`; raise `RingRefused`.

    noise_multiplier: sd of the noise of `honest` hospitals together, in units of the sensitivity. slack: relative
    error of the clipped sum (0 for counts, which are exact). room: what a coordinate of the sum must at least have,
    the clip unless given. what: is summed. remedy: what to say where no figure alone would fit. A finer grid costs
    range and a coarser one sensitivity: the coarsest that keeps sqrt(length) x grid within 1 % of the clip is taken,
    with the whole range that is left. Each figure that a refusal names fits by itself. No other number of hospitals is
    among them: with it the honest ones and the room would be others too.
    """
    needed = clip if room is None else room

    def terms(length: int = length, noise: float = noise_multiplier) -> RingTerms | None:
        return _terms(clip, noise, honest, hospitals, length, slack, needed)

    found = terms()
    if found is not None:
        return found
    fitting = [
        f"{name} {figure}"
        for name, figure in (
            ("vectors of", _largest(lambda d: terms(length=d) is not None, length)),
            ("a noise multiplier of", _nearest(lambda z: terms(noise=z) is not None, noise_multiplier)),
        )
        if figure is not None
    ]
    raise RingRefused(
        f"secure sum of {what}: {hospitals} hospitals x {length} coordinates with noise multiplier "
        f"{noise_multiplier:g}, shared by {honest}, leave less than {needed:g} for a coordinate of a hospital's sum; "
        "what fits, all else equal: " + (" or ".join(fitting) or f"nothing; {remedy}")
    )


def _terms(
    clip: float, noise: float, honest: int, hospitals: int, length: int, slack: float, needed: float
) -> RingTerms | None:
    share = noise / math.sqrt(honest)
    finest = min(
        ROUNDING_SHARE * clip / math.sqrt(length), share * clip / LEAST_OWN_STEPS, noise * clip / LEAST_TOGETHER_STEPS
    )
    grid = 2.0 ** math.floor(math.log2(finest))
    sensitivity = clip * (1 + slack) + math.sqrt(length) * grid
    deviation = share * sensitivity
    bound = ((HALF_RING - 1) // hospitals) * grid
    cut = math.floor((bound - TAIL_SD * deviation) / grid) * grid
    if cut < needed:
        return None
    return RingTerms(grid=grid, bound=bound, cut=cut, deviation=deviation, sensitivity=sensitivity)


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
    """Return the largest whole number below `most` that fits, if small ones do; None if none does."""
    if not fits(1):
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _nearest(fits: Callable[[float], bool], start: float) -> float | None:
    """Return a figure near `start` that fits, of four digits; None if none does within a factor of 2^20."""
    for steps in range(1, 21):
        for fitting, failing in ((start / 2**steps, 2 * start / 2**steps), (start * 2**steps, start * 2**steps / 2)):
            if fits(fitting):
                for _ in range(20):
                    middle = (fitting + failing) / 2
                    fitting, failing = (middle, failing) if fits(middle) else (fitting, middle)
                rounded = (float(f"{figure:.3e}") for figure in (fitting, 0.999 * fitting, 1.001 * fitting))
                return next(figure for figure in rounded if fits(figure))
    return None


def gradient_ring(study: StudyTerms, dimension: int) -> RingTerms | None:
    """Return how the clipped sums of a model with `dimension` parameters lie in the ring; None in local mode."""
    shared = study.shared
    if shared is None:
        return None
    return ring_terms(
        clip=shared.clip,
        noise_multiplier=shared.noise_multiplier,
        honest=shared.honest,
        hospitals=shared.hospitals,
        length=dimension,
    )


def counts_ring(study: StudyTerms, kind: EvaluationKind) -> RingTerms | None:
    """Return how the counts of an evaluation lie in the ring; None in local mode. A patient moves them by 1 at most."""
    shared = study.shared
    if shared is None:
        return None
    assert study.cohort.patients is not None
    return ring_terms(
        clip=1.0,
        noise_multiplier=counts_noise(study, kind),
        honest=shared.honest,
        hospitals=shared.hospitals,
        length=2 * study.evaluation.bins,
        slack=0.0,
        # A hospital of the usual size may have all its patients in one cell.
        what=f"{kind} counts",
        room=max(1.0, study.cohort.patients / shared.hospitals),
        remedy=f"cohort.patients = {study.cohort.patients} are more than counts of so many hospitals can hold",
    )


def counts_noise(study: StudyTerms, kind: EvaluationKind) -> float:
    """Return the noise multiplier of one evaluation of this kind in distributed mode, of `honest` hospitals together.

    Composed Gaussians are one with 1/z^2 = sum of 1/z_i^2; in that measure interim evaluations take `interim_share`
    of the whole, in equal parts, and the final one the rest.
    """
    shared = study.shared
    if shared is None:
        raise ValueError("counts_noise: in local mode each hospital calibrates its own")
    final, count, share = shared.evaluation_noise_multiplier, interim_evaluations(study), study.evaluation.interim_share
    return final if kind == "final" or not count else final * math.sqrt((1 - share) * count / share)


def interim_evaluations(study: StudyTerms) -> int:
    """Return how many interim evaluations the study holds."""
    return study.evaluation.interim(study.rounds)


def evaluation_kinds(study: StudyTerms) -> tuple[EvaluationKind, ...]:
    """Return the kinds of evaluation that the study holds."""
    return ("interim", "final") if interim_evaluations(study) else ("final",)


def tail_delta(hospitals: int, rounds: int, epsilon: float) -> float:
    """Return the delta that noise beyond `TAIL_SD` costs, over all coordinates, hospitals and rounds of a study.

    A discrete Gaussian of sd s reaches t s with at most the chance that a Gaussian reaches t s - 1 (Canonne, Kamath
    and Steinke 2020, proposition 25), and s is 4 or more. Where two mechanisms differ with chance p at most, one is
    (epsilon, delta + (1 + e^epsilon) p)-DP if the other is (epsilon, delta)-DP. The final evaluation is one more round.
    """
    chance = math.erfc((TAIL_SD - 1 / LEAST_OWN_STEPS) / math.sqrt(2)) + _SMOOTHING
    return (1 + math.exp(epsilon)) * chance * _COORDINATES * hospitals * (rounds + 1)


def safe_scale(bound: float, participants: int) -> float:
    """Return the largest power of two that keeps a sum over `participants` of coordinates up to `bound` in the ring."""
    room = (HALF_RING - 1) // participants
    return 2.0 ** math.floor(math.log2(room / bound))


@dataclass(frozen=True)
class RoundTerms:
    """All that a manifest says of `round` because the study says so."""

    train: bool
    evaluate: Literal["no", "interim", "final"]
    threshold: int
    weight_max: float
    vectors: tuple[VectorTerm, ...]
    shared: SharedNoise | None


def work_of(study: StudyTerms, round: int) -> tuple[bool, Literal["no", "interim", "final"]]:
    """Return whether `round` trains, and which evaluation it holds."""
    train, every = round <= study.rounds, study.evaluation.every
    interim = train and every > 0 and round % every == 0 and round < study.rounds
    return train, "interim" if interim else "no" if train else "final"


def round_terms(study: StudyTerms, round: int, *, dimension: int, participants: int) -> RoundTerms:
    """Return what `round` holds, for a model with `dimension` parameters; raise `RingRefused`, or `InputError`.

    Rounds 1 .. study.rounds train, and hold an interim evaluation where the study says so; the one after is the final
    evaluation. participants: their number in this round.
    """
    train, evaluate = work_of(study, round)
    vectors = []
    if train:
        gradient = gradient_ring(study, dimension)
        if gradient is not None:
            vectors.append(gradient.vector("gradient", dimension))
        else:
            vectors += [_local("update", dimension, UPDATE_BOUND, participants), _local("weight", 1, 1.0, participants)]
    if evaluate != "no":
        counts, cells = counts_ring(study, evaluate), 2 * study.evaluation.bins
        vectors.append(
            counts.vector("counts", cells) if counts else _local("counts", cells, COUNTS_BOUND, participants)
        )
    return RoundTerms(
        train=train,
        evaluate=evaluate,
        threshold=study.cohort.survivors_needed,
        weight_max=float(study.cohort.max_patients),
        vectors=tuple(vectors),
        shared=study.shared,
    )


def _local(name: str, length: int, bound: float, participants: int) -> VectorTerm:
    return VectorTerm(name=name, length=length, bound=bound, scale=safe_scale(bound, participants))
