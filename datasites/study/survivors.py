"""How many honest hospitals each opened sum is sure to hold: they hide one hospital, and a price relies on their noise.

n hospitals are enrolled, c of them may collude with the aggregator, t is the threshold: every survivor list that a
hospital answers has at least t members. Pure arithmetic; the console shows these numbers, and *distributed* noise is
divided by `honest_contributors`.

Why (c colluders help the aggregator, H = n - c are honest):

* *Never both secrets.* Rebuilding the self-mask seed and the round key of one hospital takes t - c honest holders
  for each, and a holder gives one of the two. So 2(t - c) <= H must fail: 2t > n + c.
* *Without the consistency wave* the aggregator may show each honest holder another list. Each list leaves out at
  most n - t hospitals, so all honest holders together say "gone" at most H(n - t) times, and a hospital counts as
  gone only when t - c of them say so. At least H - H(n - t)/(t - c) = (n - c)(2t - n - c)/(t - c) stay inside.
* *With the consistency wave* at most one list gathers t signatures (2t > n + c), and t - c on it are honest.
* *Strict*: nobody's secret is ever rebuilt; the aggregator may choose any t participants, t - c of them honest.

What m = `honest_contributors` costs: in distributed mode each hospital adds noise of sd sigma / sqrt(m), so that the
honest part of the smallest sum holds sigma. Where s survive, the sum holds sqrt(s / m) x sigma (`noise_factor`). With
the consistency wave m = t - c, so a threshold near n costs little; colluders know their own noise, and that part,
sqrt(s / (s - c)), can't be had back. Without the wave an aggregator may show different lists, and m is smaller.
"""

from __future__ import annotations

import math


def honest_contributors(hospitals: int, threshold: int, colluders: int, *, one_list: bool) -> int:
    """m: the least number of honest hospitals in any sum that a malicious aggregator can open.

    `one_list` is true with the consistency wave. The bound holds for every round
    whose participants are a part of the n enrolled: it falls with n, so the enrolled number is the worst case.
    Returns 0 where nothing is guaranteed.
    """
    n, t, c = hospitals, threshold, colluders
    if t <= c or 2 * t <= n + c:
        return 0
    if one_list:
        return t - c
    return -(-(n - c) * (2 * t - n - c) // (t - c))


def noise_factor(survivors: int, honest: int) -> float:
    """Sd of the noise in a sum over `survivors`, in units of what `honest` hospitals add together, which is priced."""
    return math.sqrt(survivors / honest)
