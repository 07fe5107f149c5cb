"""The datasite's tables, used by the service, the command line and the console alike.

A case is one submitted study at this hospital. Rows of decisions, reviews, the ledger and releases are written once
and never changed; the code offers no way to do so.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models

from datasites.study.letters import Abstention


class Case(models.Model):
    """One submitted study: the frozen copy, what was found about it, and how far it has come."""

    class State(models.TextChoices):
        """Life of a case. A refused case could not be read as a study; its reason went back to the researcher."""

        INTAKE = "intake"
        REVIEW = "review"
        APPROVED = "approved"
        RUNNING = "running"
        PAUSED = "paused"
        STOPPED = "stopped"
        REVOKED = "revoked"
        REJECTED = "rejected"
        REFUSED = "refused"
        CLOSED = "closed"

    #: States in which nobody has decided for good whether the study runs.
    OPEN = (State.INTAKE, State.REVIEW)
    ACTIVE = (State.APPROVED, State.RUNNING, State.PAUSED)
    #: States in which a study never runs again.
    ENDED = (State.CLOSED, State.REVOKED, State.REJECTED)

    study_hash = models.CharField(max_length=64)
    study_name = models.CharField(max_length=64)
    job_name = models.CharField(max_length=200)
    submitted_by = models.CharField(max_length=190)
    received_at = models.DateTimeField(auto_now_add=True)
    state = models.CharField(max_length=16, choices=State, default=State.INTAKE)
    note = models.TextField(blank=True)
    #: Binds study, plan, data version, dependencies and ruleset; what reviewers approve (I1).
    approval_hash = models.CharField(max_length=64, blank=True)
    approval_terms = models.JSONField(default=dict, db_column="terms")
    findings = models.JSONField(default=list)
    readiness = models.JSONField(default=list)
    rehearsal = models.JSONField(default=dict)
    recorded_in_syft = models.BooleanField(default=False)
    #: Reviewers asked to give the keys of the present epoch up and to join the study again in the next one.
    rejoins = models.BooleanField(default=False)
    #: The record of what people decided last, until the audit log holds it (`owed`); {} then.
    owed = models.JSONField(default=dict)
    #: Token of the list that the patients of its records are on; "" for what an older version examined (`patients`).
    listed_as = models.CharField(max_length=32, blank=True)

    class Meta:
        ordering = ["-received_at"]
        constraints = [models.UniqueConstraint(fields=["submitted_by", "job_name"], name="one_case_per_job")]

    def __str__(self) -> str:
        return f"{self.study_name} ({self.study_hash[:12]})"

    @property
    def remark(self) -> str:
        """What is noted of the state that the case is in; what was noted before it was approved is over then."""
        return "" if self.state in (self.State.APPROVED, self.State.RUNNING, self.State.CLOSED) else self.note


class CaseSummary(models.Model):
    """What lists show of a case, kept so that they open and price nothing (`cases.summary`); nothing may rest on it.

    denied_by: {"control", "reason", "remedy"} of each reason for which nobody here could approve it then. basis: digest
    of what that follows from.
    """

    case = models.OneToOneField(Case, on_delete=models.CASCADE, related_name="summary")
    title = models.CharField(max_length=200)
    organisation = models.CharField(max_length=120, blank=True)
    purpose = models.CharField(max_length=64, blank=True)
    #: What the study may cost a patient here; None where it could not be examined.
    epsilon = models.FloatField(null=True)
    denied_by = models.JSONField(default=list)
    basis = models.CharField(max_length=64, blank=True)
    at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return self.title


class Review(models.Model):
    """One person's verdict on one approval hash."""

    case = models.ForeignKey(Case, on_delete=models.PROTECT, related_name="reviews")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    role = models.CharField(max_length=32)
    verdict = models.CharField(max_length=8, choices=[("approve", "approve"), ("reject", "reject")])
    approval_hash = models.CharField(max_length=64)
    reason = models.TextField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["at"]


class PolicyDecision(models.Model):
    """A policy decision with the facts it was made on."""

    case = models.ForeignKey(Case, on_delete=models.PROTECT, related_name="decisions", null=True)
    action = models.CharField(max_length=16)
    round = models.PositiveIntegerField(null=True)
    allowed = models.BooleanField()
    record = models.JSONField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["at"]


class Population(models.Model):
    """The patients that one or several datasets speak of; budgets and the split into two sides are theirs.

    `split_key` and `fraction` say for good who is held out; `identity` is the column by which the first study that was
    approved told patients apart ("" before). `both_sides`: one that was approved later told them apart by another
    column, so that every charge counts on both sides since. `order` is the Renyi order of the budget's filter.
    """

    name = models.CharField(max_length=64, unique=True)
    split_key = models.BinaryField()
    fraction = models.FloatField()
    order = models.PositiveIntegerField(null=True)
    identity = models.CharField(max_length=190, blank=True)
    both_sides = models.BooleanField(default=False)
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class BudgetFact(models.Model):
    """One line in the history of a population's caps; the newest one with a cap is in force.

    opened, narrowed: as `datasite.toml` said. widened: two people. delta_accepted: two people took the risk of a larger
    delta for releases on these patients; it is no cap.
    """

    population = models.ForeignKey(Population, on_delete=models.PROTECT, related_name="facts")
    what = models.CharField(
        max_length=14, choices=[(k, k) for k in ("opened", "narrowed", "widened", "delta_accepted")]
    )
    epsilon = models.FloatField(default=0)
    delta = models.FloatField()
    entered_by = models.CharField(max_length=190, blank=True)
    confirmed_by = models.CharField(max_length=190, blank=True)
    reason = models.TextField(blank=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]


class SecondPersonEntry(models.Model):
    """Something that one person entered and that counts once a second one has confirmed it (`people.second_person`)."""

    proposed_by = models.CharField(max_length=190)
    proposed_at = models.DateTimeField(auto_now_add=True)
    decided_by = models.CharField(max_length=190, blank=True)
    decided_at = models.DateTimeField(null=True)

    class Meta:
        abstract = True
        ordering = ["-proposed_at"]


class Proposal(SecondPersonEntry):
    """Something that one reviewer entered and that counts once a reviewer of the other role has confirmed it."""

    kind = models.CharField(max_length=32)
    subject = models.CharField(max_length=200)
    details = models.JSONField(default=dict, db_column="terms")
    reason = models.TextField()
    proposed_role = models.CharField(max_length=32)
    outcome = models.CharField(max_length=9, blank=True, choices=[(k, k) for k in ("confirmed", "withdrawn")])

    class Meta(SecondPersonEntry.Meta):
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "subject"], condition=models.Q(outcome=""), name="one_open_proposal_of_a_kind"
            )
        ]


class LedgerEntry(models.Model):
    """One line of the privacy ledger: a reservation, a charge, or the release of what a study reserved.

    `charges` are stored charges of `datasites.privacy.events`, which is what budgets are gated on;
    `local_charges` price the same against one who sees this hospital's own vectors (they differ in distributed mode).
    """

    population = models.CharField(max_length=64)
    partition = models.CharField(max_length=16, choices=[("training", "training"), ("held_out", "held_out")])
    study_hash = models.CharField(max_length=64)
    kind = models.CharField(max_length=8, choices=[(k, k) for k in ("reserve", "charge", "release")])
    round = models.PositiveIntegerField(default=0)
    charges = models.JSONField(default=list)
    local_charges = models.JSONField(default=list)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["population", "partition", "study_hash", "kind", "round"], name="one_entry_per_round"
            )
        ]


class Round(models.Model):
    """One round at this hospital: how far it came, and what left."""

    class State(models.TextChoices):
        """A failed round stays charged and releases nothing."""

        ACCEPTED = "accepted"
        CHARGED = "charged"
        RELEASED = "released"
        UNMASKED = "unmasked"
        FAILED = "failed"

    case = models.ForeignKey(Case, on_delete=models.PROTECT, related_name="rounds")
    round = models.PositiveIntegerField()
    epoch = models.PositiveIntegerField()
    manifest_hash = models.CharField(max_length=64)
    state = models.CharField(max_length=16, choices=State, default=State.ACCEPTED)
    reason = models.TextField(blank=True)
    steps = models.PositiveIntegerField(default=0)
    seconds = models.FloatField(default=0)
    survivors = models.JSONField(default=list)
    #: What left: names and lengths of vectors, bytes, SHA-256 of the masked vector.
    release = models.JSONField(default=dict)
    audit_head = models.JSONField(default=dict)
    #: What is said to the researcher when this hospital sits the round out, the reason for the audit log, and who
    #: decided so where people did; logged and sent until the store has taken it (`abstaining`).
    abstention = models.JSONField(default=dict)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["round"]
        constraints = [models.UniqueConstraint(fields=["case", "round"], name="one_release_per_round")]

    def abstain(self, abstention: Abstention, logged_reason: str, by: tuple[str, str] | None = None) -> None:
        """Sit this round out for good.

        logged_reason: for the audit log and not for the researcher, so nothing that rows had a part in but what people
        chose to write (I16). by: name and role of the person who decided it, if anybody did.
        """
        self.state, self.abstention = (
            self.State.FAILED,
            {**abstention.model_dump(mode="json"), "told": logged_reason[:500]},
        )
        if by is not None:
            self.abstention |= {"person": by[0], "role": by[1]}
        self.save(update_fields=["state", "reason", "abstention"])


class PartyProposal(SecondPersonEntry):
    """A roster entry that one person entered; the party is pinned once a second person has compared it too."""

    email = models.CharField(max_length=190)
    entry = models.JSONField()
    outcome = models.CharField(max_length=9, blank=True, choices=[(k, k) for k in ("pinned", "withdrawn")])

    class Meta(SecondPersonEntry.Meta):
        constraints = [
            models.UniqueConstraint(
                fields=["email"], condition=models.Q(outcome=""), name="one_open_proposal_per_party"
            )
        ]


class ProviderSubject(models.Model):
    """Who a person is at the organisation's sign-in provider; written at their first sign-in, never changed.

    Addresses can be given to somebody else later; a subject can't (OpenID Connect Core 1.0, 5.7).
    """

    person = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    issuer = models.CharField(max_length=500)
    subject = models.CharField(max_length=255)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["issuer", "subject"], name="one_person_per_subject")]


class Invitation(models.Model):
    """Somebody who may set a password by a link that was shown once, until `ends_at`; `digest` is its code's SHA-256.

    Kept when it is over, until it is used or replaced: it says that this person signs in with a password.
    """

    person = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    digest = models.CharField(max_length=64, unique=True)
    ends_at = models.DateTimeField()


class FailedSignIns(models.Model):
    """Failures of one kind of one person ("" for names that nobody has) that the audit log doesn't tell of yet."""

    kind = models.CharField(max_length=32)
    person = models.CharField(max_length=150, blank=True)
    times = models.PositiveBigIntegerField(default=0)
    logged_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["kind", "person"], name="one_count_per_person")]
