"""All addresses of the console. Each view carries its roles and methods (`access.page`); tests read them from here."""

from __future__ import annotations

from django.urls import path

from datasites.hospital.console.views import (
    agreements,
    audit,
    budget,
    cases,
    data,
    entry,
    invitations,
    people,
    provider,
    roster,
    rounds,
    second_factor,
)

urlpatterns = [
    path("", entry.home, name="home"),
    path("login/", entry.login, name="login"),
    path("provider/", provider.begin, name="provider"),
    path("provider/callback/", provider.finish, name="provider-callback"),
    path("logout/", entry.logout, name="logout"),
    path("password/", entry.password, name="password"),
    path("invitation/", invitations.accept, name="invitation"),
    path("invitation/code/", invitations.code, name="invitation-code"),
    path("second-factor/", second_factor.overview, name="second-factor"),
    path("second-factor/confirm/", second_factor.confirm, name="confirm-second-factor"),
    path("cases/", cases.inbox, name="cases"),
    path("cases/<int:case_id>/", cases.show, name="case"),
    path("cases/<int:case_id>/decide/", cases.decide, name="decide"),
    path("cases/<int:case_id>/recheck/", cases.recheck, name="recheck"),
    path("cases/<int:case_id>/evidence/", cases.evidence, name="evidence"),
    path("studies/", rounds.overview, name="studies"),
    path("studies/kill/", rounds.kill, name="kill"),
    path("studies/<int:case_id>/", rounds.show, name="study"),
    path("studies/<int:case_id>/rounds/", rounds.rounds, name="rounds"),
    path("studies/<int:case_id>/move/", rounds.move, name="move"),
    path("budget/", budget.overview, name="budget"),
    path("populations/widen/", budget.widen, name="widen-budget"),
    path("populations/delta/", budget.accept_delta, name="accept-delta"),
    path("populations/entries/<int:entry_id>/", budget.decide, name="decide-entry"),
    path("budget/<slug:name>/", budget.show, name="dataset-budget"),
    path("agreements/", agreements.overview, name="agreements"),
    path("agreements/enter/", agreements.enter, name="enter-agreement"),
    path("agreements/new/", agreements.kinds, name="agreement-kinds"),
    path("agreements/new/<slug:kind>/", agreements.new, name="new-agreement"),
    path("agreements/id/<slug:id>/", agreements.show, name="agreement"),
    path("agreements/id/<slug:id>/new-version/", agreements.new_version, name="new-agreement-version"),
    path("agreements/confirm/", agreements.confirm, name="confirm-agreement"),
    path("agreements/terminate/", agreements.terminate, name="terminate-agreement"),
    path("roster/", roster.overview, name="roster"),
    path("roster/propose/", roster.propose, name="propose-party"),
    path("roster/<int:entry_id>/", roster.decide, name="decide-party"),
    path("roster/revoke/", roster.revoke, name="revoke-party"),
    path("audit/", audit.overview, name="audit"),
    path("audit/verify/", audit.verify, name="verify-audit"),
    path("audit/export/", audit.export, name="export-audit"),
    path("datasets/", data.overview, name="datasets"),
    path("datasets/<slug:name>/", data.show, name="dataset"),
    path("people/", people.overview, name="people"),
    path("people/add/", people.add, name="add-person"),
    path("people/deactivate/", people.deactivate, name="deactivate-person"),
    path("people/invite/", people.invite_again, name="invite-person"),
    path("people/second-factor/", people.reset_second_factor, name="reset-second-factor"),
]

handler400 = "datasites.hospital.console.views.entry.malformed"
handler403 = "datasites.hospital.console.views.entry.forbidden"
handler404 = "datasites.hospital.console.views.entry.missing"
handler500 = "datasites.hospital.console.views.entry.failed"
