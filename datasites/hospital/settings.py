"""Django settings of one datasite, taken from its home folder (`DATASITES_HOME`).

SQLite by default: one file, write-ahead log, full sync, and every transaction immediate, so that two processes never
read one budget and both spend it. `database = "postgresql://user:password@host/name?option=value"` uses PostgreSQL
(see `postgresql`). A connection is kept, and tried before it is used again: a server that was started again costs none.

The console's settings are here too, since Django has one place for all: strict cookies, sessions in the database,
lock-out after failed passwords, no template or static file from anywhere else than this package.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
from pathlib import Path

from django.core.management.utils import get_random_secret_key

from datasites.hospital.config import Home, OidcSettings
from datasites.hospital.postgresql import PostgresAddress
from datasites.study.errors import InputError
from datasites.study.files import replace_durably

home = Home.open(Path(os.environ["DATASITES_HOME"]))


def _database(url: str) -> dict[str, object]:
    if url == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": home.database,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 30,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
            },
        }
    return PostgresAddress.parse(url).in_django()


def _secret_key() -> str:
    path = home.root / "keys" / "django.key"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, get_random_secret_key().encode())
        return path.read_text()  # of two processes that make one, the last


def _provider(oidc: OidcSettings) -> dict[str, object]:
    """Return settings of mozilla-django-oidc; `console.provider` checks what it would let pass otherwise."""
    if importlib.util.find_spec("mozilla_django_oidc") is None:
        raise InputError("datasite.toml: [console.oidc] needs a package; pip install 'datasites[oidc]'")
    secret = home.root / oidc.client_secret_file
    try:
        if secret.stat().st_mode & 0o077:
            raise InputError(f"{secret}: others may read the client's secret; chmod 600 it")
        client_secret = secret.read_text().strip()
    except OSError as error:
        raise InputError(f"{secret}: cannot be read ({error.strerror}); put the client's secret there") from error
    return {
        "OIDC_RP_CLIENT_ID": oidc.client_id,
        "OIDC_RP_CLIENT_SECRET": client_secret,
        "OIDC_RP_SIGN_ALGO": oidc.algorithm,
        "OIDC_OP_AUTHORIZATION_ENDPOINT": oidc.authorization_endpoint,
        "OIDC_OP_TOKEN_ENDPOINT": oidc.token_endpoint,
        "OIDC_OP_USER_ENDPOINT": oidc.userinfo_endpoint,
        "OIDC_OP_JWKS_ENDPOINT": oidc.jwks_uri,
        "OIDC_AUTHENTICATION_CALLBACK_URL": "provider-callback",
        "OIDC_USE_PKCE": True,
        "OIDC_CREATE_USER": False,
        "OIDC_TIMEOUT": 10,
    }


SECRET_KEY = _secret_key()
DEBUG = False
# Logging is `serve`'s to set up. Django's way would first close all handlers, and absl's handler (which
# dp-accounting brings) also closes the stream that it writes to.
LOGGING_CONFIG = None
PASSWORD_BACKEND = "datasites.hospital.people.second_factor.PasswordAndCode"
PROVIDER_BACKEND = "datasites.hospital.console.provider.Provider"
#: The home folder and what its datasite.toml says; the console's middleware opens key and audit log from it.
DATASITE = home
_console = home.settings.console

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "axes",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "datasites.hospital",
    "datasites.hospital.console",
]
DATABASES = {
    "default": {**_database(home.settings.database), "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True},
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

# People: see `people.accounts`.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "datasites.hospital.people.passwords.Strength"},
]
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", PASSWORD_BACKEND]
if _console.oidc is not None:
    globals().update(_provider(_console.oidc))
    AUTHENTICATION_BACKENDS.append(PROVIDER_BACKEND)
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "cases"
LOGOUT_REDIRECT_URL = "login"
# By name and address together: a stranger elsewhere can't lock a reviewer out of their own desk.
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = datetime.timedelta(minutes=15)
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_CALLABLE = "datasites.hospital.console.access.locked_out"
AXES_VERBOSE = False
AXES_SENSITIVE_PARAMETERS = ["username", "new_password", "again", "code", "csrfmiddlewaretoken"]
AXES_USERNAME_CALLABLE = "datasites.hospital.console.access.client_name"
AXES_ENABLE_ADMIN = False
# Shown by the app on a person's telephone, beside the name.
OTP_TOTP_ISSUER = home.settings.organisation
# Addresses come from the socket, or from the one trusted proxy (uvicorn reads its headers); never from any header.
AXES_CLIENT_IP_CALLABLE = "datasites.hospital.console.access.client_address"

# The console.
ROOT_URLCONF = "datasites.hospital.console.urls"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", *_console.allowed_hosts]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "datasites.hospital.console.middleware.ContentSecurityPolicy",
    "datasites.hospital.console.middleware.Visible",
    "datasites.hospital.console.middleware.ErrorTitle",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "datasites.hospital.console.middleware.SiteMiddleware",
    "axes.middleware.AxesMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.messages.context_processors.messages",
                "datasites.hospital.console.middleware.page_context",
            ]
        },
    }
]
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_MAX_AGE = 600
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"

# Cookies are shared by all ports of a machine, so each datasite has names of its own.
_mark = hashlib.sha256(home.settings.email.encode()).hexdigest()[:8]
_prefix = "__Host-" if _console.https else ""
SESSION_ENGINE = "django.contrib.sessions.backends.db"
SESSION_COOKIE_NAME = f"{_prefix}datasite-{_mark}"
SESSION_COOKIE_AGE = 8 * 3600
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = _console.https
CSRF_COOKIE_NAME = f"{_prefix}csrf-{_mark}"
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Strict"
CSRF_COOKIE_SECURE = _console.https
CSRF_FAILURE_VIEW = "datasites.hospital.console.access.forged"

SECURE_SSL_REDIRECT = _console.https
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if _console.https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = _console.https
SECURE_HSTS_PRELOAD = _console.https
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 512 * 1024
# Features of an agreement are picked one by one.
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1000
DATA_UPLOAD_MAX_NUMBER_FILES = 2
# Whatever file is sent to whatever page is hashed as it passes; only the text of a small one reaches a view.
FILE_UPLOAD_HANDLERS = ["datasites.hospital.console.uploads.HashingHandler"]
