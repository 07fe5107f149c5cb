"""Each page opens for its readers, and says what the hospital's people need."""

from __future__ import annotations

import pytest

from tests.hospital.console.conftest import Console

READABLE = ["cases", "studies", "budget", "budget/heart", "agreements", "roster", "audit", "datasets", "datasets/heart"]


@pytest.mark.parametrize("page", READABLE)
def test_a_page_opens(console: Console, page: str) -> None:
    console.desk.agree()
    response = console.client("ann").get(f"/{page}/")
    assert response.status_code == 200, response.content.decode()[:2000]


def test_a_case_shows_what_a_decision_needs(console: Console) -> None:
    console.desk.agree()
    response = console.client("ann").get(f"/cases/{console.number}/")
    assert response.status_code == 200
    html = response.content.decode()
    for words in (console.desk.row.approval_hash, "baa-university", "build_model", "Rehearsal", "Budget after"):
        assert words in html
