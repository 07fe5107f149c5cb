"""What a hospital's people meet on a disk that fills up: run in a process of its own, with the folder of a small disk.

Prints one JSON object: what each command said, and what log and database hold when it is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

DISK = Path(sys.argv[1])
HOME = DISK / "home"
SETTINGS = """organisation = "Hospital"
email = "datasite@hospital.example.org"
store = "{store}"
run_as_root = true
"""
#: KiB that are left while somebody is entered, from nothing to enough.
LEFT = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)


def fill(left: int) -> None:
    """Leave so many KiB on the disk."""
    ballast = DISK / "ballast"
    ballast.unlink(missing_ok=True)
    free = os.statvfs(DISK)
    with ballast.open("wb") as file, open("/dev/zero", "rb") as zeros:
        with contextlib.suppress(OSError):
            file.write(zeros.read(max(0, free.f_bavail * free.f_frsize - left * 1024)))


def main() -> None:
    """Fill, and fail, and free."""
    from datasites.hospital.setup import initialise

    (DISK / "store").mkdir()
    initialise(HOME, SETTINGS.format(store=DISK / "store"))
    from datasites.hospital.audit.log import verify_log
    from datasites.hospital.database import DATABASE_AWAY, let_go, reason_of
    from datasites.hospital.doctor import _space
    from datasites.hospital.people.accounts import deactivate, list_people, written_down
    from datasites.hospital.people.invitations import enter_person
    from datasites.hospital.site import Site
    from datasites.study.audit_chain import records
    from datasites.study.errors import DatasitesError

    site = Site.open(HOME)
    said: dict[str, str] = {}
    space: dict[str, list[str]] = {"before": [check.state for check in _space(site)]}
    for left in LEFT:
        fill(left)
        try:
            enter_person(site, f"ann{left}", "auditor", f"ann{left}@hospital.example.org")
            said[str(left)] = ""
        except DATABASE_AWAY as error:
            said[str(left)] = reason_of(site.home, error)
            let_go()
        except (DatasitesError, OSError) as error:
            said[str(left)] = str(error)
    fill(0)
    space["full"] = [check.message for check in _space(site) if check.state == "bad"]
    (DISK / "ballast").unlink()
    let_go()
    for left in LEFT:
        if said[str(left)]:  # the same again, now that there is room
            enter_person(site, f"ann{left}", "auditor", f"ann{left}@hospital.example.org")
    with written_down(site, "person_deactivated", person="ann0", by="command line"):
        deactivate("ann0", by="")
    logged = [record.fields["person"] for record in records(site.home.audit) if record.kind == "person_added"]
    print(
        json.dumps(
            {
                "said": said,
                "space": space,
                "logged": logged,
                "entered": [person.name for person in list_people()],
                "verifies": verify_log(site.home.audit, site.identity.public_key).ok,
            }
        )
    )


if __name__ == "__main__":
    main()
