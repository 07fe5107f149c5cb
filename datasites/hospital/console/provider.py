"""Signing in with the organisation's own OpenID Connect provider, and signing in there again to confirm a decision.

mozilla-django-oidc speaks the protocol (code flow with PKCE, state and nonce). What it leaves to its users is checked
here: issuer, audience and expiry of the ID token, the subject of the userinfo, whether the provider really asked the
person again, and that somebody who was shut out stays out. The provider says who somebody is and nothing else: people
and roles are entered here, and nobody is entered by signing in.

Claim: while the provider is unavailable (nobody listens, it answers with errors or not in time), signing in and
confirming are answered with 503 in the words of `outages`, nothing is kept of them, and the next try asks it anew;
whoever has signed in, or has confirmed, goes on. Assumes that it ends an answer once it has begun one: only its silence
is timed.

Imported only where `[console.oidc]` is set; it needs the extra `oidc`.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import jwt
import requests
from django.contrib.auth.models import AbstractUser
from django.core.exceptions import SuspiciousOperation
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from mozilla_django_oidc.auth import OIDCAuthenticationBackend
from mozilla_django_oidc.views import OIDCAuthenticationCallbackView, OIDCAuthenticationRequestView

from datasites.hospital.console.access import CONFIRMED, LAST_VISIT, last_visit, provider, refuse
from datasites.hospital.models import ProviderSubject
from datasites.hospital.outages import away
from datasites.hospital.people.accounts import role_of
from datasites.hospital.people.sign_ins import failed, signed_in
from datasites.study.identity import identity_key

#: In the session: when this person set out to sign in again, and who they were.
CONFIRMING = "provider_confirming"
#: Seconds by which the provider's clock may be behind ours.
CLOCK_SKEW = 60

log = logging.getLogger(__name__)


class Provider(OIDCAuthenticationBackend):
    """Finds the person whom the provider's tokens speak of; see OpenID Connect Core 1.0, 3.1.3.7 and 5.3.2."""

    def verify_token(self, token: str, **values: Any) -> dict[str, Any]:
        """Return the claims of an ID token; raises `SuspiciousOperation` for one that is not for this console."""
        claims = super().verify_token(token, **values)
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != provider().issuer:
            raise SuspiciousOperation("ID token: of another issuer than datasite.toml names")
        if self.OIDC_RP_CLIENT_ID not in audiences or claims.get("azp", self.OIDC_RP_CLIENT_ID) != (
            self.OIDC_RP_CLIENT_ID
        ):
            raise SuspiciousOperation("ID token: not for this console")
        if not isinstance(claims.get("exp"), int | float) or not claims.get("sub"):
            raise SuspiciousOperation("ID token: without expiry or subject")
        self.request.provider_claims = claims
        return claims

    def get_userinfo(self, access_token: str, id_token: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the claims of the userinfo endpoint, which must speak of the ID token's subject."""
        claims = super().get_userinfo(access_token, id_token, payload)
        if claims.get("sub") != payload["sub"]:
            raise SuspiciousOperation("userinfo: of another subject than the ID token")
        return claims

    def filter_users_by_claims(self, claims: dict[str, Any]) -> list[AbstractUser]:
        """Return the person with this e-mail address, if the provider has verified it and the subject is unchanged."""
        oidc = provider()
        # As a key, other letters may be another person's address: what tells nobody apart may not let anybody in.
        written = str(claims.get("email", ""))
        email = identity_key(written) if written.isascii() else ""
        if not email or not (oidc.emails_are_verified or claims.get("email_verified") is True):
            log.warning("sign-in of %s refused: the provider has not verified the address", email or "nobody")
            return []
        person = self.UserModel.objects.filter(email=email).first()
        if person is None:
            return []
        try:
            with transaction.atomic():
                known, _ = ProviderSubject.objects.get_or_create(
                    person=person, defaults={"issuer": oidc.issuer, "subject": claims["sub"]}
                )
        except IntegrityError:
            log.warning("sign-in of %s refused: the provider knew this subject by another address", email)
            return []
        if (known.issuer, known.subject) != (oidc.issuer, claims["sub"]):
            log.warning("sign-in of %s refused: another subject than the first time; enter the person again", email)
            return []
        return [person]

    def get_user(self, user_id: int) -> AbstractUser | None:
        """Return the person of a session, unless shut out meanwhile."""
        user = super().get_user(user_id)
        return user if user is not None and self.user_can_authenticate(user) else None


class Begin(OIDCAuthenticationRequestView):
    """Sends the browser to the provider; with `?again=1`, to sign in there again whatever session it has."""

    def get(self, request: Any) -> HttpResponse:
        """Remember who set out to confirm, if this is a confirmation."""
        request.session.pop(CONFIRMING, None)
        if self._again(request):
            request.session[CONFIRMING] = {"person": request.user.pk, "since": time.time()}
        return super().get(request)

    def get_extra_params(self, request: Any) -> dict[str, str]:
        """Return what makes the provider ask again (OpenID Connect Core 1.0, 3.1.2.1)."""
        return {"prompt": "login", "max_age": "0"} if self._again(request) else {}

    @staticmethod
    def _again(request: Any) -> bool:
        return request.user.is_authenticated and request.GET.get("again") == "1"


class Finish(OIDCAuthenticationCallbackView):
    """Takes the browser back from the provider."""

    request: Any
    user: AbstractUser

    def get(self, request: HttpRequest) -> HttpResponse:
        """Finish the flow; a provider that fails or can't be reached signs nobody in."""
        try:
            return super().get(request)
        except (SuspiciousOperation, jwt.PyJWTError, KeyError) as error:
            log.warning("sign-in refused: %s", error)
            failed(self.request.site, "sign_in_failed", "")
            return refuse(request, 403, "The provider's answer is not one that this console accepts. Sign in again.")
        except (requests.RequestException, ValueError) as error:
            oidc = provider()
            log.warning("%s; tried again at the next sign-in", away(oidc.service, oidc.hidden(str(error))))
            now = away(f"The {oidc.service}", "it can't be asked now")
            return refuse(request, 503, f"{now}. Sign in again in a moment; the datasite's log says why.")

    def login_failure(self) -> HttpResponse:
        """Answer a sign-in that was cancelled at the provider, or whose address belongs to nobody entered here."""
        return refuse(self.request, 403, "Nobody signed in. An admin enters people here, with their e-mail address.")

    def login_success(self) -> HttpResponse:
        """Sign the person in, or note that they have just proved again who they are."""
        confirming = self.request.session.pop(CONFIRMING, None)
        if confirming is None:
            if not role_of(self.user):
                return self.login_failure()
            before = last_visit(self.user)
            signed_in(self.request.site, self.user.username, by="provider")
            response = super().login_success()
            self.request.session[LAST_VISIT] = before
            return response
        if (confirming["person"], self.request.user.pk) != (self.user.pk, self.user.pk):
            return refuse(
                self.request, 403, "The person who signed in at the provider is not the one who is signed in here."
            )
        if self.request.provider_claims.get("auth_time", 0) < confirming["since"] - CLOCK_SKEW:
            return refuse(self.request, 403, "The provider did not ask you to sign in again, so nothing is confirmed.")
        self.request.session[CONFIRMED] = time.time()
        return super().login_success()
