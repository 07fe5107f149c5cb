"""The one way in which forms act: check the form, act, report it, and answer a refusal with its reason and status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect

from datasites.hospital.audit.log import AuditError
from datasites.hospital.console.access import refuse
from datasites.hospital.console.forms import problems
from datasites.hospital.people.accounts import PersonError
from datasites.study.errors import DatasitesError

#: Shows a form again, with what was typed and its errors, and this status.
ShowAgain = Callable[[forms.Form, int], HttpResponse]


def act(
    request: Any,
    form: forms.Form,
    do: Callable[[dict[str, Any]], str | HttpResponse],
    then: str,
    *arguments: object,
    again: ShowAgain | None = None,
    at: str | None = None,
) -> HttpResponse:
    """Run `do` on the form's clean values and go to the page `then` with what it says, or show the page it returns.

    A malformed form is 400, a wrong password 403, a state of things that has changed or a rule that denies 409.
    again: shows the form again instead of a page that only says why; what a rule denies stands at the field `at`.
    """

    def refused(status: int, reason: str, field: str | None = None) -> HttpResponse:
        if again is None:
            return refuse(request, status, reason)
        form.add_error(field if field in form.fields else None, reason)
        return again(form, status)

    if not form.is_valid():
        return again(form, 400) if again else refuse(request, 400, " ".join(problems(form)))
    try:
        message = do(form.cleaned_data)
    except PersonError as error:
        return refused(403, str(error), "password")
    except AuditError as error:
        return refused(503, f"The audit log can't be written, so nothing was done: {error}")
    except DatasitesError as error:
        return refused(409, str(error), at)
    if isinstance(message, HttpResponse):
        return message
    messages.success(request, message)
    return redirect(then, *arguments)
