"""What studies charge at the hospital, and copies of its accounts as a backup holds them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from datasites.hospital.audit.log import AuditLog, head_file
from datasites.hospital.budget import ledger, ledger_log
from datasites.hospital.budget.ledger import PrivacyCost
from datasites.hospital.config import Home
from datasites.hospital.models import BudgetFact, LedgerEntry, Population
from datasites.hospital.site import Site
from datasites.privacy.plan import PrivacyPlan

PLAN = PrivacyPlan(clip=1.0, noise_multiplier=4.0, sampling_rate=0.3, rounds=15, steps_per_round=5)
WHOLE = {"training": PrivacyCost(PLAN.event(), PLAN.local_event())}
ROUND = {"training": PrivacyCost(PLAN.round_event(), PLAN.round_event())}
STUDY = "a" * 64


def spent(site: Site) -> float:
    return ledger.state(site.home.dataset("heart"))[0].spent


def restarted(site: Site) -> Site:
    """The site as the next process opens it."""
    ledger_log.forget(site.home)
    return Site(site.home, site.identity, AuditLog(site.home.audit, site.identity))


class Backup:
    """Copies of a home's parts, as a backup holds them: the anchors are kept out of it."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home, self.folder = home, folder
        folder.mkdir()
        for path in (home.audit, head_file(home.audit)):
            shutil.copy(path, folder / path.name)
        self.tables = self._tables()

    def _tables(self) -> dict[type[Any], list[dict[str, Any]]]:
        return {
            model: [{f.attname: getattr(row, f.attname) for f in model._meta.concrete_fields} for row in rows]
            for model in (Population, BudgetFact, LedgerEntry)
            for rows in [model.objects.all()]
        }

    def restore_database(self) -> None:
        for model in (LedgerEntry, BudgetFact, Population):
            model.objects.all().delete()
        for model, rows in self.tables.items():
            model.objects.bulk_create(model(**values) for values in rows)

    def restore_log(self) -> None:
        for path in (self.home.audit, head_file(self.home.audit)):
            shutil.copy(self.folder / path.name, path)

    def lose_anchors(self) -> None:
        shutil.rmtree(self.home.anchors)
