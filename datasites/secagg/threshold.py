"""How many survivors a round needs: the thresholds that are safe, and a usual one.

n hospitals are enrolled, c of them may collude with the aggregator, t is the threshold: every survivor list that a
hospital answers has at least t members. What that leaves in a sum is `study.survivors.honest_contributors`;
`EpochTerms` refuses terms that fail `check_threshold`.
"""

from __future__ import annotations

from datasites.secagg.errors import BadTerms
from datasites.study.manifest import MOST_HOSPITALS
from datasites.study.survivors import honest_contributors

#: Below this a sum shows a participant too much: in a sum of two, each sees the other's update.
MINIMUM_PARTICIPANTS = 3


def choose_threshold(hospitals: int, colluders: int, *, one_list: bool = False) -> int:
    """Return the least threshold that is safe for c colluders and not below the usual floor(2n/3) + 1, nor below 3.

    A low threshold tolerates more dropouts. Raises `BadTerms` where even t = n leaves fewer than two honest
    hospitals in a sum.
    """
    start = max(MINIMUM_PARTICIPANTS, 2 * hospitals // 3 + 1)
    for threshold in range(start, hospitals + 1):
        if honest_contributors(hospitals, threshold, colluders, one_list=one_list) >= 2:
            return threshold
    raise BadTerms(
        f"threshold: with {hospitals} hospitals of which {colluders} may collude no threshold keeps two honest ones "
        "in every sum; enrol more hospitals or declare fewer colluders"
    )


def check_threshold(hospitals: int, threshold: int, colluders: int, *, one_list: bool) -> None:
    """Raise `BadTerms` unless every sum of these terms holds at least two honest hospitals."""
    if not MINIMUM_PARTICIPANTS <= hospitals <= MOST_HOSPITALS:
        raise BadTerms(
            f"an epoch needs {MINIMUM_PARTICIPANTS} to {MOST_HOSPITALS} hospitals, not {hospitals}; "
            "a sum of two shows each the other's update"
        )
    if hospitals < threshold:
        raise BadTerms(
            f"{hospitals} hospitals are fewer than the threshold {threshold}: a sum that the study was approved for "
            "needs that many; wait until more hospitals approve, or submit a study with a smaller cohort"
        )
    if threshold < MINIMUM_PARTICIPANTS:
        raise BadTerms(f"threshold {threshold} is below {MINIMUM_PARTICIPANTS}; raise it, or leave it out")
    if honest_contributors(hospitals, threshold, colluders, one_list=one_list) < 2:
        raise BadTerms(
            f"threshold {threshold} of {hospitals} with {colluders} colluder(s) can leave one honest hospital alone "
            "in a sum; raise the threshold, switch the consistency wave on, or declare fewer colluders"
        )
