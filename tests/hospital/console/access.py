"""Who may do what in the console, by the names of its URL configuration."""

from __future__ import annotations

NOBODY, STEWARD, OFFICER, AUDITOR, ADMIN = "", "steward", "privacy_officer", "auditor", "admin"
REVIEWERS = {STEWARD, OFFICER}
READERS = REVIEWERS | {AUDITOR}
ALL = READERS | {ADMIN}
#: Name in the URL configuration -> (path, methods, roles). A view without a row here fails the first test.
TABLE: dict[str, tuple[str, set[str], set[str]]] = {
    "home": ("/", {"GET"}, ALL),
    "login": ("/login/", {"GET", "POST"}, {NOBODY} | ALL),
    "provider": ("/provider/", {"GET"}, {NOBODY} | ALL),
    "provider-callback": ("/provider/callback/", {"GET"}, {NOBODY} | ALL),
    "logout": ("/logout/", {"POST"}, ALL),
    "password": ("/password/", {"GET", "POST"}, ALL),
    "invitation": ("/invitation/", {"GET", "POST"}, {NOBODY} | ALL),
    "invitation-code": ("/invitation/code/", {"GET"}, {NOBODY} | ALL),
    "second-factor": ("/second-factor/", {"GET", "POST"}, ALL),
    "confirm-second-factor": ("/second-factor/confirm/", {"POST"}, ALL),
    "cases": ("/cases/", {"GET"}, READERS),
    "case": ("/cases/{case}/", {"GET"}, READERS),
    "decide": ("/cases/{case}/decide/", {"POST"}, REVIEWERS),
    "recheck": ("/cases/{missing}/recheck/", {"POST"}, REVIEWERS),
    "evidence": ("/cases/{missing}/evidence/", {"POST"}, READERS),
    "studies": ("/studies/", {"GET"}, ALL),
    "kill": ("/studies/kill/", {"POST"}, REVIEWERS | {ADMIN}),
    "study": ("/studies/{missing}/", {"GET"}, READERS),
    "rounds": ("/studies/{missing}/rounds/", {"GET"}, READERS),
    "move": ("/studies/{missing}/move/", {"POST"}, REVIEWERS),
    "budget": ("/budget/", {"GET"}, READERS),
    "dataset-budget": ("/budget/heart/", {"GET"}, READERS),
    "widen-budget": ("/populations/widen/", {"POST"}, REVIEWERS),
    "accept-delta": ("/populations/delta/", {"POST"}, REVIEWERS),
    "decide-entry": ("/populations/entries/1/", {"POST"}, REVIEWERS),
    "agreements": ("/agreements/", {"GET"}, READERS),
    "enter-agreement": ("/agreements/enter/", {"GET", "POST"}, REVIEWERS),
    "agreement-kinds": ("/agreements/new/", {"GET"}, REVIEWERS),
    "new-agreement": ("/agreements/new/baa/", {"GET", "POST"}, REVIEWERS),
    "agreement": ("/agreements/id/nothing/", {"GET"}, READERS),
    "new-agreement-version": ("/agreements/id/nothing/new-version/", {"GET", "POST"}, REVIEWERS),
    "confirm-agreement": ("/agreements/confirm/", {"POST"}, REVIEWERS),
    "terminate-agreement": ("/agreements/terminate/", {"POST"}, REVIEWERS),
    "roster": ("/roster/", {"GET"}, READERS),
    "propose-party": ("/roster/propose/", {"POST"}, REVIEWERS),
    "decide-party": ("/roster/{missing}/", {"POST"}, REVIEWERS),
    "revoke-party": ("/roster/revoke/", {"POST"}, REVIEWERS),
    "audit": ("/audit/", {"GET"}, READERS),
    "verify-audit": ("/audit/verify/", {"POST"}, READERS),
    "export-audit": ("/audit/export/", {"POST"}, READERS),
    "datasets": ("/datasets/", {"GET"}, READERS),
    "dataset": ("/datasets/heart/", {"GET"}, READERS),
    "people": ("/people/", {"GET"}, {ADMIN, AUDITOR}),
    "add-person": ("/people/add/", {"POST"}, {ADMIN}),
    "invite-person": ("/people/invite/", {"POST"}, {ADMIN}),
    "reset-second-factor": ("/people/second-factor/", {"POST"}, {ADMIN}),
    "deactivate-person": ("/people/deactivate/", {"POST"}, {ADMIN}),
}
