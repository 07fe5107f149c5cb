"""Which hospitals of the present epoch say that they lack its keys, so that another epoch is due.

Claim (another epoch): a hospital that abstains by `epoch-lost` (its journal was given up), or by `epoch-keys` where the
researcher has pinned another key than the epoch was set up with, is let in by a new epoch before the next round, if
enough hospitals are there that would take part in one. These are the ones who answered last, and those whose key was
replaced, but for whoever would refuse it: by `epoch-keys`, where the researcher's pins are still those of this epoch;
having released last under the old key, where they are not. Each hospital is believed a few times only (`epochs`).

Not claimed: an epoch for a hospital that says nothing; it may as well be down. Nor one that nobody refuses: a hospital
may pin between its last answer and the offer, or hold other keys than it says.
"""

from __future__ import annotations

from collections.abc import Iterable

from datasites.aggregator.run_files import RoundRecord
from datasites.study import letters

#: Said of a hospital whose vector came.
RELEASED = ("released",)


def who_lacks_keys(
    rounds: Iterable[RoundRecord],
    epoch: int,
    *,
    approved: set[str],
    present: set[str],
    replaced: set[str],
    threshold: int,
) -> set[str]:
    """Return hospitals among `approved` for which another epoch is due now, by what each has said last in this one.

    present: who answered last. replaced: parties whose key, as pinned here, is another than this epoch's.
    """
    answers: dict[str, tuple[str, ...]] = {}
    for round_record in rounds:
        if round_record.epoch == epoch:
            answers |= dict.fromkeys(round_record.heads, RELEASED) | round_record.abstained
    lost = {email for email, controls in answers.items() if letters.EPOCH_LOST in controls}
    other = {email for email, controls in answers.items() if letters.EPOCH_KEYS in controls}
    under_old = {email for email, controls in answers.items() if controls == RELEASED} - replaced
    there = approved & (present | replaced) - (under_old if replaced else other)
    lacking = approved & (lost | other if replaced else lost)
    return lacking if len(there) >= threshold else set()
