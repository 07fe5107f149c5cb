"""How many survivors a round needs, and how many honest hospitals each sum is then sure to hold.

n hospitals are enrolled, c of them may collude with the aggregator, t is the threshold: every survivor list that a
hospital answers has at least t members. Pure arithmetic; the console shows these numbers, *distributed* noise is
divided by `honest_contributors`, and `Context` refuses terms that fail `check_threshold`.

Why (c colluders help the aggregator, H = n - c are honest):

* *Never both secrets.* Rebuilding the self-mask seed and the round key of one hospital takes t - c honest holders
  for each, and a holder gives one of the two. So 2(t - c) <= H must fail: 2t > n + c.
* *Without the consistency wave* the aggregator may show each honest holder another list. Each list leaves out at
  most n - t hospitals, so all honest holders together say "gone" at most H(n - t) times, and a hospital counts as
  gone only when t - c of them say so. At least H - H(n - t)/(t - c) = (n - c)(2t - n - c)/(t - c) stay inside.
* *With the consistency wave* at most one list gathers t signatures (2t > n + c), and t - c on it are honest.
* *Strict*: nobody's secret is ever rebuilt; the aggregator may choose any t participants, t - c of them honest.
"""

from __future__ import annotations

from datasites.secagg.errors import BadTerms
from datasites.study.manifest import MOST_HOSPITALS

#: Below this a sum shows a participant too much: in a sum of two, each sees the other's update.
MINIMUM_PARTICIPANTS = 3


def honest_contributors(hospitals: int, threshold: int, colluders: int, *, one_list: bool) -> int:
    """m: the least number of honest hospitals in any sum that a malicious aggregator can open.

    `one_list` is true with the consistency wave and in strict mode. The bound holds for every round whose
    participants are a part of the n enrolled: it falls with n, so the enrolled number is the worst case.
    Returns 0 where nothing is guaranteed.
    """
    n, t, c = hospitals, threshold, colluders
    if t <= c or 2 * t <= n + c:
        return 0
    if one_list:
        return t - c
    return -(-(n - c) * (2 * t - n - c) // (t - c))


def choose_threshold(hospitals: int, colluders: int, *, one_list: bool = False) -> int:
    """The least threshold that is safe for c colluders and not below the usual floor(2n/3) + 1, nor below 3.

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
