"""Makes a new datasite: settings, institution key, database, SyftBox, and the roster entry to hand to other parties."""

from __future__ import annotations

import os
from pathlib import Path

from datasites.control.syft import HospitalControl
from datasites.enclave.sandbox import Sandbox
from datasites.hospital.audit.bindings import bind, party_content
from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.audit.entered import pinned_by_people
from datasites.hospital.config import CONFIG_FILE, Home
from datasites.hospital.site import Site
from datasites.study.errors import DatasitesError, InputError
from datasites.study.files import replace_durably
from datasites.study.identity import Identity
from datasites.study.roster import Roster, RosterEntry
from datasites.transport.store import Store


def initialise(root: Path, settings_toml: str) -> RosterEntry:
    """Make a datasite in `root`, an empty or new folder, from the text of its `datasite.toml`.

    Returns the roster entry to give to the other parties, also written to `roster-entry.json`. Raises `InputError`
    when the folder is in use or the settings are wrong, `SandboxUnavailable` where none can be made; then no key
    has been made. A store that can't be reached is a `StoreError`, and leaves a folder to remove before the next try.
    """
    root = root.resolve()
    if (root / CONFIG_FILE).exists():
        raise InputError(f"{root}: a datasite is here already; choose another folder")
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root}: the folder is not empty; choose a new one")
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    replace_durably(root / CONFIG_FILE, settings_toml.encode())
    try:
        home = Home.open(root)
        Sandbox(home.settings.sandbox).require()
    except DatasitesError:
        (root / CONFIG_FILE).unlink()
        raise
    for private in (home.prepared, home.frozen, home.secagg, home.anchors, home.transport, home.run, home.local_rules):
        private.mkdir(mode=0o700)
    Identity.generate(home.settings.email).save(home.key, os.environ.get("DATASITES_PASSPHRASE"))
    Commitments(home)
    site = Site.open(root)
    from datasites.hospital.budget.population import (
        open_populations,  # a room of the database, which is open from here on
    )

    control = open_control(site)
    try:
        entry = RosterEntry(
            organisation=home.settings.organisation,
            email=home.settings.email,
            role="hospital",
            public_key=site.identity.public_key,
            syft_fingerprint=control.syft_fingerprint(),
        )
    finally:
        control.close()
    replace_durably(home.roster_entry, entry.canonical())
    # Itself included: the terms of a secure sum are built from the pinned roster alone.
    Roster(entries=(entry,)).save(home.roster)
    commitment = bind(home, party_content(entry))
    site.audit.append("initialised", email=entry.email, fingerprint=entry.fingerprint, commitment=commitment)
    open_populations(site)
    return entry


def require_own_user(home: Home) -> None:
    """Raise `InputError` where this process is root and the operator has not written that it may be."""
    if os.geteuid() == 0 and not home.settings.run_as_root:
        raise InputError(
            f"{home.root / CONFIG_FILE}: a datasite does not serve as root, since a worker that got out of its sandbox "
            "would be root; run it as a user of its own, or write `run_as_root = true` at the top where root is all "
            "there is, as in a container"
        )


def open_store(home: Home) -> Store:
    """Open the shared store of this datasite's settings."""
    return Store(home.settings.store)


def open_control(site: Site) -> HospitalControl:
    """Open syft's control plane of this datasite; one process at a time."""
    home = site.home
    roster = pinned_by_people(home, Roster.load(home.roster))
    return HospitalControl.open(site.identity, home.syftbox, open_store(home), home.transport, roster)
