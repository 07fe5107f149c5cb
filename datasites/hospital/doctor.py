"""Checks that a datasite can do its work here, and says what to correct; runs while the datasite runs or before.

Tries things for real: writes to the store, opens keys, starts the sandbox and tries to get out of it. Changes nothing
but a probe file in the store, which it removes, ends a line of the ledger that a kill left half written, and logs that
a table or mapping was written since a study on it was examined.
"""

from __future__ import annotations

import json
import os
import secrets
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple

from django.db import connection

from datasites.enclave import cgroup
from datasites.enclave.escape import escape_check
from datasites.hospital.audit.entered import agreements_by_hand, people_by_hand, pinned_by_hand
from datasites.hospital.budget import ledger, pending
from datasites.hospital.budget.population import accepted_delta, require_agreed
from datasites.hospital.budget.reconcile import differences
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.whereabouts import open_cases
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data.mapping import read_mapping
from datasites.hospital.data.patients import in_part
from datasites.hospital.data.reading import TableReader
from datasites.hospital.data.sources import in_words, log_written
from datasites.hospital.database import DATABASE_AWAY, let_go, name_of, reason_of
from datasites.hospital.models import Case
from datasites.hospital.outages import away
from datasites.hospital.people.accounts import REVIEWERS, list_people
from datasites.hospital.postgresql import PostgresAddress, options_in_words
from datasites.hospital.setup import open_store, require_own_user
from datasites.hospital.site import Site
from datasites.hospital.space import LITTLE, NONE, MiB, rooms
from datasites.study.addresses import shown
from datasites.study.audit_chain import verify_log
from datasites.study.dates import today
from datasites.study.errors import DatasitesError
from datasites.study.roster import Roster
from datasites.transport.store import StoreUnreachable
from policies.engine import Engine
from policies.facts import most_delta
from policies.registry import RegistryFile

#: Hosts that are this machine, beside folders of sockets.
HERE = ("", "127.0.0.1", "::1", "localhost")
#: A clock that is further off than this gives wrong dates to agreements and audit records.
MOST_SKEW = 120.0


class Diagnosis(NamedTuple):
    """One finding: ok, warn (works, but look at it) or bad (the datasite can't work like this)."""

    name: str
    state: Literal["ok", "warn", "bad"]
    message: str


def examine(site: Site, only: Collection[str] = ()) -> Iterator[Diagnosis]:
    """Run all checks of `CHECKS`, or those named, one after the other; one that raises is bad and stops no other."""
    for name, check in CHECKS.items():
        if only and name not in only:
            continue
        try:
            yield from check(site)
        except DATABASE_AWAY as error:
            let_go()
            yield Diagnosis(name, "bad", away(name_of(site.home), reason_of(site.home, error)))
        except StoreUnreachable as error:
            yield Diagnosis(name, "bad", away(*error.outage(f"store {shown(site.home.settings.store)}")))
        except (DatasitesError, OSError, ValueError, RuntimeError) as error:
            yield Diagnosis(name, "bad", str(error))


def _permissions(site: Site) -> Iterator[Diagnosis]:
    home = site.home
    open_paths = [path for path in _private(home) if path.exists() and path.stat().st_mode & 0o077]
    if open_paths:
        listed = ", ".join(f"{path.name} ({path.stat().st_mode & 0o777:o})" for path in open_paths)
        yield Diagnosis("permissions", "bad", f"others may read {listed}; run `chmod -R go= {home.root}`")
    else:
        yield Diagnosis("permissions", "ok", "keys and private folders are this user's alone")


def _space(site: Site) -> Iterator[Diagnosis]:
    for room in rooms(site.home):
        few = room.files is not None and room.files < 1000
        state: Literal["ok", "warn", "bad"] = "ok"
        if room.free < NONE or room.is_full:
            state = "bad"
        elif room.free < LITTLE or few:
            state = "warn"
        remedy = "" if state == "ok" else f"; make room, {LITTLE / MiB:,.0f} MiB at least, or move it to a larger disk"
        yield Diagnosis("space", state, f"{room.summary}{remedy}")


def _user(site: Site) -> Iterator[Diagnosis]:
    require_own_user(site.home)
    if os.geteuid() == 0:
        yield Diagnosis(
            "user",
            "warn",
            "runs as root, by run_as_root in datasite.toml: the sandbox alone stands between a worker and this "
            "machine, and the number of its threads is not limited; run the datasite as a user of its own",
        )
    else:
        yield Diagnosis("user", "ok", "runs as a user that is not root")


def _private(home: Home) -> tuple[Path, ...]:
    return (home.root, home.key, home.key.with_name("django.key"), home.prepared, home.frozen, home.registry)


def _roster(site: Site) -> Iterator[Diagnosis]:
    roster = Roster.load(site.home.roster)
    own = [entry for entry in roster.entries if entry.email == site.identity.email]
    if not own or own[0].public_key != site.identity.public_key:
        yield Diagnosis("roster", "bad", "this hospital's own key is not pinned; pin its roster-entry.json")
    by_hand = pinned_by_hand(site.home, roster.entries)
    if by_hand:
        remedy = (
            "find out who edited the roster or restored an older copy; revoke whom you don't trust (`datasites roster "
            "revoke`) and pin the others again, which the log then knows"
        )
        yield Diagnosis("roster", "bad", f"{'; '.join(by_hand)}: {remedy}")
    researchers = sum(entry.role == "researcher" for entry in roster.entries)
    hospitals = len(roster.entries) - researchers
    enough = researchers > 0 and hospitals >= 3
    yield Diagnosis(
        "roster",
        "ok" if enough else "warn",
        f"{hospitals} hospitals and {researchers} researchers are pinned"
        + ("" if enough else "; a study needs 3 hospitals and a researcher: `datasites roster pin`"),
    )


def _database(site: Site) -> Iterator[Diagnosis]:
    started = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        took = 1000 * (time.monotonic() - started)
        name = name_of(site.home)
        if connection.vendor != "postgresql":
            yield Diagnosis("database", "ok", f"{name}: answers in {took:.0f} ms")
            return
        cursor.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        tls = (cursor.fetchone() or ("",))[0]
        cursor.execute("SHOW synchronous_commit")
        keeps = cursor.fetchone()[0]
    address = PostgresAddress.parse(site.home.settings.database)
    options = options_in_words(address.options)
    message = f"{name}: answers in {took:.0f} ms, {tls or 'without TLS'}, with {options}"
    if keeps == "off":
        yield Diagnosis("database", "bad", f"{name}: acknowledges what it has not kept; set synchronous_commit = on")
    elif not tls and not all(host in HERE or host.startswith("/") for host in address.host.split(",")):
        yield Diagnosis(
            "database", "warn", f"{message}; it is on another machine: add sslmode=verify-full and sslrootcert"
        )
    else:
        yield Diagnosis("database", "ok", message)


def _store(site: Site) -> Iterator[Diagnosis]:
    store, key = open_store(site.home), f"doctor/{site.identity.email}.{secrets.token_hex(4)}"
    probe = secrets.token_bytes(64)
    started = time.monotonic()
    store.put(key, probe)
    back = store.get(key)
    store.delete(key)
    took = 1000 * (time.monotonic() - started)
    if back != probe:
        yield Diagnosis(
            "store", "bad", f"{store.shown}: what was written was not read back; another program changes it"
        )
    else:
        yield Diagnosis("store", "ok", f"{store.shown}: written, read and removed in {took:.0f} ms")
    yield from _clock(store.local)


def _clock(folder: Path | None) -> Iterator[Diagnosis]:
    if folder is None:
        yield Diagnosis("clock", "warn", "this store has no clock to compare with; check this machine's time service")
        return
    probe = folder / f".doctor-{secrets.token_hex(4)}"
    probe.touch()
    skew = abs(probe.stat().st_mtime - time.time())
    probe.unlink()
    message = f"the store's clock and this machine's differ by {skew:.0f} s"
    yield Diagnosis(
        "clock", "ok" if skew < MOST_SKEW else "bad", message + ("" if skew < MOST_SKEW else "; set the clock")
    )


def _policies(site: Site) -> Iterator[Diagnosis]:
    engine = Engine(local_dir=site.home.local_rules)
    own = sum(rule.origin == "local" for rule in engine.rules)
    yield Diagnosis("policies", "ok", f"{len(engine.rules)} rules, {own} of them this hospital's own")


def _people(site: Site) -> Iterator[Diagnosis]:
    people = [(one.name, one.role, one.email) for one in list_people() if one.active and one.role]
    by_hand = people_by_hand(site.home, people)
    if by_hand:
        remedy = (
            "find out who edited the database or restored an older one, and shut them out (`person deactivate`); whom "
            "the log does not know, since it was lost or an earlier version made this datasite, is entered again, once "
            "you know them, by `datasites person add` with the same name, role and address"
        )
        yield Diagnosis("people", "bad", f"{'; '.join(by_hand)}: {remedy}")
    else:
        reviewers = sum(role in REVIEWERS for _, role, _ in people)
        yield Diagnosis("people", "ok", f"{len(people)} may act, {reviewers} of them review, entered as the log says")


def _agreements(site: Site) -> Iterator[Diagnosis]:
    day = today()
    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    by_hand = agreements_by_hand(site.home, registry.agreements, day)
    if by_hand:
        remedy = (
            "find out who edited registry.json or restored an older copy; restore the newest correct copy, or "
            "end these (`datasites agreements terminate`), enter them again and have that confirmed; one that is not "
            "there is entered or confirmed again, one whose end the log alone knows, or the file alone, is ended again"
        )
        yield Diagnosis("agreements", "bad", f"{'; '.join(by_hand)}; no policy takes them: {remedy}")
    soon = registry.expiring(day)
    message = f"{len(registry.in_force(day))} in force, {len(registry.unconfirmed())} wait for a second person"
    if soon:
        message += "; end soon: " + ", ".join(f"{warning.id} in {warning.days_left} days" for warning in soon)
    yield Diagnosis("agreements", "warn" if soon or not registry.in_force(day) else "ok", message)


def _datasets(site: Site) -> Iterator[Diagnosis]:
    home = site.home
    if not home.settings.datasets:
        yield Diagnosis("datasets", "warn", "none is registered; add [[datasets]] to datasite.toml")
    for dataset in home.settings.datasets:
        try:
            yield from _dataset(home, dataset)
        except DatasitesError as error:  # the others are looked at all the same
            yield Diagnosis(f"dataset {dataset.name}", "bad", str(error))


def _dataset(home: Home, dataset: DatasetSettings) -> Iterator[Diagnosis]:
    read_mapping(home.root / dataset.mapping)
    with TableReader(home) as reader:
        rows, mock = reader.rows(dataset), reader.mock_rows(dataset)
    caps = require_agreed(dataset)
    used = max(state.percent_used for state in ledger.state(dataset))
    state: Literal["ok", "warn"] = "ok" if used < 100 else "warn"
    yield Diagnosis(
        f"dataset {dataset.name}",
        state,
        f"{rows} rows, mock of {mock} rows, {used:.0f} % of the privacy budget spent or reserved",
    )
    if surplus := dataset.surplus_in_words(rows):
        yield Diagnosis(f"dataset {dataset.name}: records", "warn", surplus)
    most = most_delta(dataset.declared_patients)
    if caps.delta > max(most, accepted_delta(dataset.population)):
        yield Diagnosis(
            f"dataset {dataset.name}: delta",
            "warn",
            f"{caps.delta:g} is above {most:.3g}, which is 0.01 / declared patients: no study is allowed; set a "
            "smaller delta, or let two people accept the risk: `datasites budget accept-delta`",
        )


def _cases(site: Site) -> Iterator[Diagnosis]:
    running = Case.objects.filter(state__in=Case.ACTIVE)
    changed = False
    for row in running:
        try:
            differs = open_case(site.home, row).differs
        except DatasitesError as error:  # the others are looked at all the same
            differs = (str(error),)
        if differs:
            changed = True
            yield Diagnosis(
                f"case {row.pk}",
                "bad",
                f"what would run now is not what people approved, and no round will run: {'; '.join(differs)}; restore "
                "that, or ask the researcher to submit again",
            )
    if not changed:
        yield Diagnosis("cases", "ok", f"{len(running)} approved, which would run as they were approved")


def _sources(site: Site) -> Iterator[Diagnosis]:
    case_rows = list(open_cases(site.home))
    log_written(site, case_rows)
    found = [difference for row in case_rows if (difference := in_words(site.home, row, rows=True))]
    for difference in found:
        yield Diagnosis("sources", "warn", difference)
    if not found:
        yield Diagnosis(
            "sources", "ok", f"tables and mappings are those that {len(case_rows)} open case(s) were examined on"
        )


def _accounts(site: Site) -> Iterator[Diagnosis]:
    # A line that a kill left half written is ended here, as the next start of the service would.
    pending.finish_all(site)
    found = list(differences(site.home))
    for difference in found:
        yield Diagnosis("accounts", "bad", difference)
    if not found:
        yield Diagnosis("accounts", "ok", "database, audit log and anchor agree")
    for name in in_part(site.home):
        yield Diagnosis(
            "patients",
            "warn",
            f"population {name}: its patients are not all known: their list is an older one, or was "
            "lost; no other population is ready until two people say that it is other people",
        )


def _audit(site: Site) -> Iterator[Diagnosis]:
    report = verify_log(site.home.audit, site.identity.public_key)
    message = f"{report.checked} records verify" if report.ok else f"record {report.first_bad}: {report.reason}"
    yield Diagnosis("audit", "ok" if report.ok else "bad", message)


def _sign_in(site: Site) -> Iterator[Diagnosis]:
    oidc = site.home.settings.console.oidc
    if oidc is None:
        yield Diagnosis("sign-in", "ok", "with passwords of the console; no [console.oidc]")
        return
    # Certificates are checked; what is found is compared and not kept.
    try:
        with urllib.request.urlopen(f"{oidc.issuer}/.well-known/openid-configuration", timeout=10) as answer:
            says = dict(json.load(answer))
    except (OSError, HTTPException, ValueError, TypeError) as error:
        yield Diagnosis("sign-in", "bad", away(oidc.service, oidc.hidden(str(error) or type(error).__name__)))
        return
    names = ("issuer", "authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")
    other = [name for name in names if says.get(name) != getattr(oidc, name)]
    if other:
        yield Diagnosis("sign-in", "bad", f"{oidc.name} differs from datasite.toml: {', '.join(other)}; correct it")
    elif oidc.algorithm not in says.get("id_token_signing_alg_values_supported", ["RS256"]):
        yield Diagnosis("sign-in", "bad", f"{oidc.name} does not sign with {oidc.algorithm}; set algorithm")
    else:
        yield Diagnosis("sign-in", "ok", f"{shown(oidc.issuer)} agrees with datasite.toml")


def _sandbox(site: Site) -> Iterator[Diagnosis]:
    sandbox = site.template.sandbox
    for warning in sandbox.warnings:
        yield Diagnosis("sandbox", "warn", warning)
    if sandbox.config.mode == "off":
        yield Diagnosis("workers", "warn", "each is started separately and without a sandbox; no escape was tried")
        return
    sandbox.require()
    with closing(site.template):
        attempts = escape_check(site.template)
    if reason := site.template.fork_refusal:
        yield Diagnosis(
            "workers", "ok", f"each is started separately in a sandbox of its own, since none can be forked: {reason}"
        )
    else:
        yield Diagnosis("workers", "ok", "they are forked from one template, and isolated from each other")
    for attempt in attempts:
        if attempt.outcome == "got out":
            yield Diagnosis("sandbox", "bad", f"code got out: {attempt.name} ({attempt.detail})")
    untried = [attempt for attempt in attempts if attempt.outcome == "not tried"]
    if untried:
        names = ", ".join(attempt.name for attempt in untried)
        message = f"{len(untried)} escape attempts could not be made, so nothing is known of them: {names}"
        yield Diagnosis("sandbox", "bad", f"{message} ({untried[0].detail})")
    if all(attempt.held for attempt in attempts):
        yield Diagnosis("sandbox", "ok", f"all {len(attempts)} escape attempts were blocked")


def _cgroup(site: Site) -> Iterator[Diagnosis]:
    try:
        service = int(json.loads((site.home.run / "ready.json").read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        yield Diagnosis("cgroup", "ok", "not known while the datasite doesn't serve: it looks for one at its start")
        return
    if subtree := cgroup.delegated(service):
        yield Diagnosis("cgroup", "ok", f"workers get groups of their own below {subtree}")
    else:
        yield Diagnosis(
            "cgroup",
            "warn",
            "workers limit themselves, and what the kernel keeps for them is not counted; under systemd set "
            "`Delegate=memory pids` in the service's unit",
        )


def _gpu(site: Site) -> Iterator[Diagnosis]:
    devices = site.home.settings.sandbox.devices
    absent = [device for device in devices if not Path(device).exists()]
    if absent:
        yield Diagnosis("gpu", "bad", f"{', '.join(absent)}: no such device; correct sandbox.devices")
    elif devices:
        yield Diagnosis("gpu", "ok", f"workers get {', '.join(devices)}")
    else:
        yield Diagnosis("gpu", "ok", "none configured; workers train on the processor")


#: In this order: what many others rest on comes first, and what takes seconds last.
CHECKS: dict[str, Callable[[Site], Iterator[Diagnosis]]] = {
    "permissions": _permissions,
    "space": _space,
    "user": _user,
    "roster": _roster,
    "database": _database,
    "store": _store,
    "policies": _policies,
    "people": _people,
    "agreements": _agreements,
    "datasets": _datasets,
    "cases": _cases,
    "sources": _sources,
    "audit": _audit,
    "accounts": _accounts,
    "sign-in": _sign_in,
    "sandbox": _sandbox,
    "cgroup": _cgroup,
    "gpu": _gpu,
}
