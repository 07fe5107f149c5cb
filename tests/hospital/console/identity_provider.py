"""An OpenID Connect provider on loopback, for the tests: django-oauth-toolkit in a process of its own.

`python identity_provider.py PORT CALLBACK` serves until it is killed; prints "ready" once it listens.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from wsgiref.simple_server import make_server

import django
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings
from django.core.management import call_command

CLIENT, SECRET, PASSWORD = "datasite", "the secret of console and provider", "another long passphrase"
#: Who can sign in, and whether the provider has verified their address.
USERS = {"ann": True, "bob": True, "eva": False, "guest": True}
LOGIN = '<form method="post">{% csrf_token %}{{ form }}<input type="hidden" name="next" value="{{ next }}"></form>'


def configure(port: int) -> None:
    """Settings of a Django process that is the provider and nothing else."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    settings.configure(
        SECRET_KEY="of a test",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF="identity_provider",
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(tempfile.mkdtemp()) / "provider.sqlite3"}
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        SESSION_COOKIE_NAME="provider",
        CSRF_COOKIE_NAME="provider-csrf",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [("django.template.loaders.locmem.Loader", {"registration/login.html": LOGIN})],
                    "context_processors": ["django.template.context_processors.request"],
                },
            }
        ],
        LOGIN_URL="/login/",
        OAUTH2_PROVIDER={
            "OIDC_ENABLED": True,
            "OIDC_ISS_ENDPOINT": f"http://127.0.0.1:{port}/o",
            "OIDC_RSA_PRIVATE_KEY": pem,
            "PKCE_REQUIRED": True,
            "SCOPES": {"openid": "who you are", "email": "your address"},
            "OAUTH2_VALIDATOR_CLASS": "identity_provider.Claims",
        },
    )
    django.setup()


sys.modules["identity_provider"] = sys.modules[__name__]  # the name that its settings know it by
configure(int(sys.argv[1]))

from django.contrib.auth import get_user_model  # noqa: E402
from django.contrib.auth.views import LoginView  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.urls import include, path  # noqa: E402
from oauth2_provider.models import get_application_model  # noqa: E402
from oauth2_provider.oauth2_validators import OAuth2Validator  # noqa: E402


class Claims(OAuth2Validator):
    """Adds the address to what the provider says."""

    oidc_claim_scope = None

    def get_additional_claims(self, request):  # type: ignore[no-untyped-def]
        """Address, and whether it is verified."""
        user = request.user
        return {"email": user.email, "email_verified": USERS[user.username]}


urlpatterns = [
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("login/", LoginView.as_view()),
]


def main() -> None:
    """Enter people and the client; serve."""
    port, callback = int(sys.argv[1]), sys.argv[2]
    call_command("migrate", verbosity=0)
    for name in USERS:
        get_user_model().objects.create_user(name, f"{name}@cleveland.example.org", PASSWORD)
    model = get_application_model()
    model.objects.create(
        name="datasite",
        client_id=CLIENT,
        client_secret=SECRET,
        client_type=model.CLIENT_CONFIDENTIAL,
        authorization_grant_type=model.GRANT_AUTHORIZATION_CODE,
        redirect_uris=callback,
        algorithm=model.RS256_ALGORITHM,
        skip_authorization=True,
    )
    with make_server("127.0.0.1", port, get_wsgi_application()) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
