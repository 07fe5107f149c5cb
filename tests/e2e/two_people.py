"""Both demo people of one hospital approve a study, in one process and through the functions behind every command.

`python two_people.py HOME STUDY_HASH`, with their passwords as JSON on standard input. It waits for the case.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Approve, steward first."""
    home, study_hash = Path(sys.argv[1]), sys.argv[2]
    passwords = json.load(sys.stdin)
    from datasites.hospital.site import Site

    site = Site.open(home)
    from datasites.hospital.cases import review
    from datasites.hospital.models import Case
    from datasites.hospital.people.accounts import identify

    deadline = time.monotonic() + 180
    while (row := Case.objects.filter(study_hash=study_hash, state=Case.State.REVIEW).first()) is None:
        if time.monotonic() > deadline:
            sys.exit(f"{home}: the study was not taken in: {list(Case.objects.values('state', 'note'))}")
        time.sleep(0.2)
    for name, password in passwords.items():
        review.approve(site, row.pk, identify(name, password), "test", row.approval_hash)


if __name__ == "__main__":
    main()
