"""How pages write figures: moments, epsilons, hashes, sides of the patients and units. They know no rule of their own.

`{% load figures %}` at the top of a template. What strangers wrote is escaped as everywhere.
"""

from __future__ import annotations

import datetime

from django import template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince, timeuntil
from django.utils.timezone import now

from datasites.hospital.rounds.progress import in_epsilon

register = template.Library()

#: Units of UCUM as people write them.
UNITS = {"1": "none", "a": "years", "mo": "months", "wk": "weeks", "d": "days", "mm[Hg]": "mmHg", "/min": "per minute"}


@register.simple_tag
def utc(moment: datetime.datetime | None, seconds: bool = False) -> SafeString | str:
    """Write a moment with its zone, and how long ago it was (or in how long it will be) as its title."""
    if moment is None:
        return ""
    moment = moment.astimezone(datetime.UTC)
    apart = f"in {timeuntil(moment)}" if moment > now() else f"{timesince(moment)} ago"
    shown = f"{moment:%Y-%m-%d %H:%M:%S}" if seconds else f"{moment:%Y-%m-%d %H:%M}"
    return format_html('<time datetime="{}" title="{}">{} UTC</time>', moment.isoformat(), apart, shown)


@register.filter
def epsilon(value: float | None) -> str:
    """Write an epsilon with two decimals."""
    return "" if value is None else in_epsilon(float(value))


@register.filter
def fours(digits: str) -> SafeString:
    """Write a hash in groups of four, which the style sheet sets apart, so that a copy of it has no spaces."""
    groups = ((digits[place : place + 4],) for place in range(0, len(digits), 4))
    return format_html_join("", '<span class="four">{}</span>', groups)


@register.filter
def side(partition: str) -> str:
    """Write which side of a population's patients is meant."""
    return partition.replace("_", "-")


@register.filter
def spaced(name: str) -> str:
    """Write a name of a kind of record, or of a control, as words."""
    return name.replace("_", " ")


@register.filter
def listed(value: object) -> object:
    """Write what a record holds: a list as its members, all else as it is."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


@register.filter
def unit(symbol: str) -> str:
    """Write a unit as people do."""
    return UNITS.get(symbol, symbol)
