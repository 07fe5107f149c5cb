"""Whatever is sent to whatever address, nothing is a 500; and a page asks the database few questions."""

from __future__ import annotations

from typing import Any

import pytest
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasites.hospital.models import Case, PolicyDecision, Round
from tests.hospital.console.access import TABLE
from tests.hospital.console.conftest import PEOPLE, Console
from tests.hospital.desk import PASSWORD, values_of

FIELDS = [
    "action", "again", "before", "document", "email", "entry", "epsilon", "fingerprint", "hash", "id", "kind", "name",
    "code", "new_password", "page", "password", "rate", "reason", "role", "rounds", "seen", "show", "steps", "text",
    "username", "verdict", "version", "contains", "next", "sure", "step", "terms", "after", "effective", "expires",
    "reference", "parties", "services", "purposes", "features", "other_parties", "other_features", "state", "order",
]  # fmt: skip
#: Near misses get further than noise does.
WORDS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        ["approve", "reject", "pause", "resume", "revoke", "pin", "withdraw", "baa-storage", "1", "2", "0" * 64, "-1",
         "1e308", "nan", "inf", "99999999999999999999", "ann", "steward", PASSWORD, "heart", "\x00", "{}", "[]",
         '{"email": 1}', "[" * 2000, "[[agreement]]", "[[agreement]]\nid = []", "datasite@va.example.org", "opened",
         "https://evil.example/", "\ud7ff\uffff", "open", "x" * 3000, "preview", "change", "enter", "compare",
         "2026-01-01", "9999-12-31"]
    ),
)  # fmt: skip
ADDRESSES = [(name, method) for name, (_, methods, _) in sorted(TABLE.items()) for method in sorted(methods)]


@pytest.mark.slow
def test_no_form_and_no_parameter_is_a_500(console: Console) -> None:
    console.desk.agree()
    clients = {role: console.client(name) for role, name in PEOPLE.items()}

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
    @given(
        st.sampled_from([a for a in ADDRESSES if a[0] not in ("kill", "logout")]),
        st.dictionaries(st.sampled_from(FIELDS), WORDS, max_size=8),
        st.sampled_from([console.number, 10**9, 2**63 - 1, 2**63, 10**40]),
        st.booleans(),
    )
    def fuzz(address: tuple[str, str], values: dict[str, str], number: int, may: bool) -> None:
        name, method = address
        path, _, roles = TABLE[name]
        role = next(role for role in PEOPLE if role in roles) if may else "auditor"
        where = path.format(case=number, missing=number)
        client = clients[role]
        response: Any = client.get(where, values) if method == "GET" else client.post(where, values)
        assert response.status_code < 500, f"{method} {where} {values}: {response.status_code}"

    fuzz()
    console.desk.nothing_happened()


@pytest.fixture
def crowded(console: Console) -> Console:
    """Many more rows than fit a page."""
    desk = console.desk
    desk.agree()
    values = values_of(desk.row)
    states = ["review", "closed", "running", "revoked"]
    rows = [Case(**{**values, "job_name": f"other-{n}", "state": states[n % 4]}) for n in range(200)]
    Case.objects.bulk_create(rows)
    study = Case.objects.filter(state="running").last()
    assert study is not None
    Round.objects.bulk_create(Round(case=study, round=n, epoch=0, manifest_hash="a" * 64) for n in range(1, 300))
    record = {"denied_by": []}
    PolicyDecision.objects.bulk_create(
        PolicyDecision(case=desk.row, action="run_round", allowed=True, record=record) for _ in range(300)
    )
    console.study = study.pk  # type: ignore[attr-defined]
    return console


def test_each_page_asks_a_bounded_number_of_questions(crowded: Console) -> None:
    from django.db import connection

    bounds = {
        "/": 6,
        "/cases/": 8,
        "/cases/?state=review&contains=heart&order=title": 8,
        f"/cases/{crowded.number}/": 48,
        "/studies/": 7,
        f"/studies/{crowded.study}/": 11,  # type: ignore[attr-defined]
        f"/studies/{crowded.study}/rounds/": 11,  # type: ignore[attr-defined]
        "/budget/": 16,
        "/budget/heart/": 20,
        "/agreements/": 6,
        "/agreements/new/baa/": 6,
        "/agreements/enter/": 5,
        "/agreements/id/irb/": 6,
        "/agreements/id/irb/new-version/": 6,
        "/roster/": 6,
        "/audit/": 5,
        "/datasets/": 5,
        "/datasets/heart/": 6,
    }
    client = crowded.client("ann")
    for path, most in bounds.items():
        with CaptureQueriesContext(connection) as asked:
            response = client.get(path)
        assert response.status_code == 200, path
        assert len(asked) <= most, f"{path}: {len(asked)} queries"
    admin = crowded.client("eva")
    with CaptureQueriesContext(connection) as asked:
        assert admin.get("/people/").status_code == 200
    assert len(asked) <= 8


def test_the_audit_log_is_paged_from_its_end_without_gaps(tmp_path: Any) -> None:
    from datasites.hospital.audit import pages
    from datasites.hospital.audit.log import AuditLog
    from datasites.study.identity import Identity

    log = AuditLog(tmp_path / "audit.jsonl", Identity.generate("a@a.example.org"))
    for number in range(120):
        log.append("even" if number % 2 == 0 else "odd", number=number, text="x" * (number * 17 % 900))
    whole, before = [], 0
    while True:
        page = pages.audit_page(log.path, pages.Filter(), before, size=7)
        whole += [record.seq for record in page.records]
        before = page.older
        if not before:
            break
    assert whole == list(range(121, 0, -1))
    even = pages.audit_page(log.path, pages.Filter(kind="even"), size=1000).records
    assert [record.fields["number"] for record in even] == list(range(118, -1, -2))
    words = pages.audit_page(log.path, pages.Filter(contains='NUMBER":117'), size=9).records
    assert [record.fields["number"] for record in words] == [117]
