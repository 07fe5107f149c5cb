"""Templates of workers that tests of one process share, as workers of one datasite do: a template holds nothing."""

from __future__ import annotations

import functools

import pytest

from datasites.enclave.sandbox import SandboxConfig
from datasites.enclave.template import Template


class Shared(Template):
    """A template that outlasts those who close it, and ends with this process."""

    def close(self) -> None:
        """Leave it to others."""


@functools.cache
def shared(config: SandboxConfig) -> Template:
    """The template of this configuration."""
    return Shared(config)


def share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each datasite of this process use the one of its configuration."""
    from datasites.hospital import site

    monkeypatch.setattr(site.Site, "template", property(lambda site: shared(site.home.settings.sandbox)))
