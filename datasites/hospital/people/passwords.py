"""Whether a password is strong enough: one check, by zxcvbn, for console and command line.

It counts how many guesses an attacker needs who knows names, words, dates, keyboards and what others have chosen, and
the person's own name, address and organisation. What is refused is refused in sentences that never hold any of it.
"""

from __future__ import annotations

import threading
from typing import Any

from django.core.exceptions import ValidationError

LONGEST = 256
#: The top of zxcvbn's scale: more than ten billion guesses at a stolen Argon2 hash.
LEAST_SCORE = 4
#: As many characters as are looked at, which takes a second at most; what follows makes no password weaker.
_LOOKED_AT = 40
#: It keeps the last person's own terms in a table of its module.
_one_at_a_time = threading.Lock()


class Strength:
    """A validator of Django's (`AUTH_PASSWORD_VALIDATORS`)."""

    def validate(self, password: str, user: Any = None) -> None:
        """Raise `ValidationError` with the reasons and what to do where the password is easy to guess."""
        if len(password) > LONGEST:
            raise ValidationError(f"This password is too long. It may have at most {LONGEST} characters.")
        if not password:
            return  # which zxcvbn can't look at, and another validator refuses
        from zxcvbn import zxcvbn  # its lists of words are read at import, and few commands set a password

        with _one_at_a_time:
            found = zxcvbn(password[:_LOOKED_AT], user_inputs=_of(user), max_length=_LOOKED_AT)
        if found["score"] < LEAST_SCORE:
            feedback = found["feedback"]
            suggestions = feedback["suggestions"] or ["Add another word or two. Uncommon words are better."]
            reasons = ["This password is too easy to guess.", feedback["warning"], *suggestions]
            raise ValidationError([reason for reason in reasons if reason])

    def get_help_text(self) -> str:
        """Say what is asked for."""
        return "A few uncommon words are better than one with digits and signs."


def _of(user: Any) -> list[str]:
    """Return what an attacker knows of the person and of this place."""
    from datasites.hospital.database import this_home

    settings = this_home().settings
    known = ["datasite", *settings.organisation.split(), settings.email]
    if user is not None:
        known += [user.username, *user.username.replace("@", ".").split("."), user.email, user.email.partition("@")[0]]
    return [word for word in known if word]
