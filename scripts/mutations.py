"""Wrong lines that the fast tests must notice: for each, where it stands, what it becomes, and which tests look there.

Read by `scripts/show_mutations.py`, which tries them, and by a test that keeps each text in its file.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One wrong line. old: a text that stands in `file` exactly once; new: what it becomes. tests: pytest arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied_to(self, text: str) -> str:
        """`text` of the file with the mutation in it; raises `ValueError` if its line is not there, or not once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} holds {self.old!r} {text.count(self.old)} times, not once")
        return text.replace(self.old, self.new)


_NOISE, _SAMPLING = "tests/privacy/test_noise.py", "tests/privacy/test_sampling.py"
_PRICES, _PLANS = "tests/privacy/test_prices.py", "tests/privacy/test_study_plan.py"
_EVALUATION, _TRAINER = "tests/privacy/test_evaluation.py", "tests/privacy/test_trainer.py"
_RINGS, _SHARED = "tests/study/test_rounds.py", "tests/study/test_shared_noise.py"
_ACCOUNTS, _SETTLE = "tests/hospital/test_accounts.py", "tests/hospital/test_settle.py"
_RESTORED = "tests/hospital/test_restored.py"
_ENDING = "tests/enclave/test_ending.py"
_KEYS_LOST = "test_keys_of_the_researcher_that_the_store_loses_are_put_again_during_a_run"
_RUN, _ALLOWING = "tests/researcher/test_run.py", "tests/enclave/test_allowing.py"
_ENTERED = "tests/hospital/test_entered_log.py"
_ENTRIES, _SETTINGS = "tests/hospital/test_evidence_entries.py", "tests/hospital/test_addresses_in_settings.py"
_LEDGER, _POPULATION = "tests/hospital/test_ledger.py", "tests/hospital/test_population.py"
_CHARGES, _RUNNING = "tests/hospital/test_charges.py", "tests/hospital/test_running.py"
_MACHINE, _SUBMISSIONS = "tests/hospital/test_machine_shared.py", "tests/hospital/test_submissions.py"
_TICKS, _RETRY = "tests/hospital/test_ticks.py", "tests/hospital/test_retry.py"
_ABSTAINING, _KEYS = "tests/hospital/test_abstaining.py", "tests/hospital/test_epoch_keys.py"

MUTATIONS = (
    # What is added.
    Mutation(
        "sigma: half the noise is added",
        "datasites/privacy/noise.py",
        "out *= sigma / math.sqrt(DRAWS)",
        "out *= 0.5 * sigma / math.sqrt(DRAWS)",
        (_NOISE,),
    ),
    Mutation(
        "sigma: half the discrete noise is added",
        "datasites/privacy/trainer.py",
        "return steps + discrete_gaussian(len(clipped), ring.deviation / ring.grid, self._randomness)",
        "return steps + discrete_gaussian(len(clipped), 0.5 * ring.deviation / ring.grid, self._randomness)",
        (f"{_TRAINER}::test_a_distributed_release_is_whole_grid_steps_and_sums_to_the_planned_noise",),
    ),
    Mutation(
        "clip: noise for half of it",
        "datasites/privacy/trainer.py",
        "self._sensitivity = plan.clip * (1 + NORM_SLACK)",
        "self._sensitivity = 0.5 * plan.clip * (1 + NORM_SLACK)",
        (f"{_TRAINER}::test_released_noise_has_the_planned_size",),
    ),
    Mutation(
        "clip: rows are cut to twice of it",
        "datasites/privacy/clipping.py",
        "torch.where(norms > limits, limits / norms,",
        "torch.where(norms > limits, 2 * limits / norms,",
        (f"{_TRAINER}::test_no_patient_moves_the_sum_by_more_than_the_clip_however_loud",),
    ),
    Mutation(
        "unit: each record is cut as if it were a patient",
        "datasites/privacy/trainer.py",
        "torch.from_numpy(plan.clip / index.records[index.owner])",
        "torch.from_numpy(plan.clip / index.records[index.owner] ** 0)",
        (
            f"{_TRAINER}::test_no_patient_moves_the_sum_by_more_than_the_clip_however_loud",
            f"{_TRAINER}::test_adding_one_patient_moves_the_sum_by_at_most_the_clip",
        ),
    ),  # fmt: skip
    Mutation(
        "unit: a sample of records and not of patients",
        "datasites/privacy/sampling.py",
        "return np.flatnonzero(chosen[index.owner]) if index.count",
        "return np.flatnonzero(chosen[np.arange(len(index.owner)) % index.count]) if index.count",
        (_SAMPLING,),
    ),
    Mutation(
        "rate: patients enter more often",
        "datasites/privacy/sampling.py",
        ".random(index.count) < rate",
        ".random(index.count) < 1.2 * rate",
        (_SAMPLING,),
    ),
    Mutation(
        "evaluation: half the noise",
        "datasites/privacy/evaluation.py",
        "noised(counts, 1.0, plan.multiplier(kind), randomness)",
        "noised(counts, 0.5, plan.multiplier(kind), randomness)",
        (_EVALUATION,),
    ),
    Mutation(
        "evaluation: half the discrete noise",
        "datasites/privacy/evaluation.py",
        "discrete_gaussian(len(counts), ring.deviation / ring.grid, randomness)",
        "discrete_gaussian(len(counts), 0.5 * ring.deviation / ring.grid, randomness)",
        (_EVALUATION,),
    ),
    Mutation(
        "evaluation: counts are cut by the ring, after their noise",
        "datasites/privacy/evaluation.py",
        "np.rint(np.clip(counts, -ring.cut, ring.cut) / ring.grid)",
        "np.rint(counts / ring.grid)",
        (_EVALUATION,),
    ),
    Mutation(
        "evaluation: a patient weighs one for each record",
        "datasites/privacy/evaluation.py",
        "weight = 1.0 / index.records[index.owner]",
        "weight = 1.0 / index.records[index.owner] ** 0",
        (_EVALUATION,),
    ),
    Mutation(
        "interim: an interim evaluation's noise on the final one",
        "datasites/privacy/plan.py",
        "            return self.final_multiplier\n",
        "            return self.interim_multiplier or self.final_multiplier\n",
        (_PRICES, _EVALUATION),
    ),
    Mutation(
        "distributed share: noise is divided by m and not by its root",
        "datasites/privacy/plan.py",
        'or its share 1 / sqrt(honest)."""\n        return self.noise_multiplier / math.sqrt(self.honest or 1)',
        'or its share 1 / sqrt(honest)."""\n        return self.noise_multiplier / (self.honest or 1)',
        (_PRICES, "tests/privacy/test_plan.py"),
    ),
    Mutation(
        "distributed share: the ring's noise is divided by m",
        "datasites/study/rounds.py",
        "share = noise / math.sqrt(honest)",
        "share = noise / honest",
        (_RINGS,),
    ),
    Mutation(
        "honest count: colluders' noise is relied on",
        "datasites/study/survivors.py",
        "        return t - c\n",
        "        return t\n",
        (_RINGS, _SHARED),
    ),
    Mutation(
        "grid: rounding is not part of the sensitivity",
        "datasites/study/rounds.py",
        "sensitivity = clip * (1 + slack) + math.sqrt(length) * grid",
        "sensitivity = clip * (1 + slack)",
        (_RINGS,),
    ),
    Mutation(
        "grid: coarser than the noise",
        "datasites/study/rounds.py",
        "noise * clip / LEAST_TOGETHER_STEPS",
        "4 * noise * clip / LEAST_TOGETHER_STEPS",
        (_RINGS,),
    ),
    Mutation(
        "divisor: the number of rows, which nobody may learn",
        "datasites/privacy/trainer.py",
        "gradient = noisy / divisor",
        "gradient = noisy / max(1, len(target))",
        (f"{_TRAINER}::test_the_divisor_is_public_not_the_number_of_rows",),
    ),
    Mutation(
        "seeds: the key of noise is known",
        "datasites/privacy/noise.py",
        "os.urandom(32) if key is None else",
        "bytes(32) if key is None else",
        (_NOISE,),
    ),
    Mutation(
        "seeds: streams under one key are the same",
        "datasites/privacy/noise.py",
        "{next(self._calls)}|",
        "",
        (_NOISE,),
    ),
    # What is priced and charged.
    Mutation(
        "sigma: more noise is priced than is added",
        "datasites/privacy/plan.py",
        "        return self.noise_multiplier * (LATTICE if",
        "        return 1.2 * self.noise_multiplier * (LATTICE if",
        (_PRICES,),
    ),
    Mutation(
        "rate: priced as its square",
        "datasites/privacy/plan.py",
        "return release(multiplier, self.sampling_rate, count)",
        "return release(multiplier, self.sampling_rate**2, count)",
        (_PRICES,),
    ),
    Mutation(
        "steps: those of a round are priced as one",
        "datasites/privacy/plan.py",
        "return self._steps(self._priced_multiplier, self.steps_per_round)",
        "return self._steps(self._priced_multiplier, 1)",
        (_PRICES, "tests/privacy/test_plan.py"),
    ),
    Mutation(
        "steps: one more runs than the plan pays for",
        "datasites/privacy/trainer.py",
        "if self._steps >= self._plan.steps_per_round:",
        "if self._steps > self._plan.steps_per_round:",
        (f"{_TRAINER}::test_the_mechanism_counts_and_stops_by_itself",),
    ),
    Mutation(
        "evaluation: more noise is priced than is added",
        "datasites/privacy/plan.py",
        "return GaussianDpEvent(self.multiplier(kind) *",
        "return GaussianDpEvent(1.2 * self.multiplier(kind) *",
        (_PRICES,),
    ),
    Mutation(
        "interim: the final evaluation is charged as an interim one",
        "datasites/hospital/cases.py",
        "Asked(counts.event(evaluate), counts.local_event(evaluate))",
        'Asked(counts.event("interim"), counts.local_event("interim"))',
        (_CHARGES,),
    ),
    Mutation(
        "held-out patients are not charged for the final evaluation",
        "datasites/hospital/cases.py",
        'if evaluate != "no":\n            counts',
        'if evaluate == "interim":\n            counts',
        (_CHARGES,),
    ),
    Mutation(
        "delta: the tail of the noise is not paid for",
        "datasites/privacy/study_plan.py",
        "    return limits.delta - tail\n",
        "    return limits.delta\n",
        (_PLANS,),
    ),
    Mutation(
        "delta: the file's is taken where people agreed on less",
        "datasites/hospital/population.py",
        "min(asked.delta, agreed.delta)",
        "asked.delta",
        (_POPULATION,),
    ),
    Mutation(
        "refund: a study that closes gives back what it charged",
        "datasites/hospital/accounts.py",
        "        if self.released:\n            return charged\n",
        "        if self.released:\n            return []\n",
        (f"{_LEDGER}::test_what_a_closed_study_charged_still_counts",),
    ),
    Mutation(
        "hospital's cap ignored",
        "datasites/hospital/ledger.py",
        "if not after <= caps.epsilon + TOLERANCE:",
        "if not after <= 2 * caps.epsilon + TOLERANCE:",
        (f"{_LEDGER}::test_the_cap_is_kept_at_the_one_order_that_its_budget_was_opened_at",),
    ),
    Mutation(
        "hospital's limit on one study ignored",
        "datasites/privacy/study_plan.py",
        "min(self.epsilon, asked.epsilon)",
        "asked.epsilon",
        (f"{_PLANS}::test_a_stricter_hospital_refuses_and_names_the_study_that_it_would_take",),
    ),
    Mutation(
        "study's cap ignored: more rounds than were reserved",
        "datasites/hospital/ledger.py",
        "if not is_part_of(charged, account.reserved_events(partition)):",
        "if not charged:",
        (
            f"{_LEDGER}::test_rounds_compose_to_what_was_reserved_and_no_round_more",
            f"{_LEDGER}::test_a_charge_is_part_of_what_was_reserved_however_cheap_it_is",
        ),
    ),  # fmt: skip
    Mutation(
        "population: a dataset of another name has a budget of its own",
        "datasites/hospital/ledger.py",
        "        known = accounts_of(population)\n        if study in known:\n",
        "        known = accounts_of(population) if dataset.name == population else {}\n        if study in known:\n",
        (f"{_POPULATION}::test_two_datasets_of_one_population_share_its_budget_and_its_split",),
    ),
    # Database, audit log and anchor tell one story.
    Mutation(
        "story: the running service compares nothing",
        "datasites/hospital/ledger.py",
        "        require_one_story(site.home, population)\n        known = accounts_of(population)\n        account",
        "        known = accounts_of(population)\n        account",
        (f"{_ACCOUNTS}::test_all_charges_deleted",),
    ),
    Mutation(
        "story: a service starts on a home that was put back",
        "datasites/hospital/datasite.py",
        "        require_one_story(site.home)\n",
        "",
        (f"{_ACCOUNTS}::test_a_service_on_a_home_that_was_put_back_does_not_start",),
    ),
    Mutation(
        "story: the smaller loss counts",
        "datasites/hospital/accounts.py",
        "prices[partition] = max(",
        "prices[partition] = min(",
        (f"{_ACCOUNTS}::test_charges_made_cheaper_are_noticed_and_the_dearer_one_counts",),
    ),
    Mutation(
        "story: the gate reads the database alone",
        "datasites/hospital/ledger.py",
        "    logged = ledger_log.tell(this_home()).of(population)\n",
        "    logged: dict[str, StudyAccount] = {}\n",
        (f"{_ACCOUNTS}::test_the_whole_ledger_deleted",),
    ),
    Mutation(
        "story: a missing anchor is written anew",
        "datasites/hospital/ledger_log.py",
        'return whole if _begins(home, whole.told) else replace(whole, standing="missing")',
        "return whole",
        (f"{_ACCOUNTS}::test_nothing_but_two_people_makes_a_missing_anchor_good",),
    ),
    Mutation(
        "restore: open studies are not charged in full",
        "datasites/hospital/settle.py",
        "return account if sure else accounts.in_full(account)",
        "return account",
        (f"{_SETTLE}::test_an_open_study_counts_as_charged_in_full_where_the_anchor_is_gone",),
    ),
    Mutation(
        "restore: a log that was lost is a new one",
        "datasites/hospital/settle.py",
        'sure = ledger_log.standing(home) != "missing"',
        "sure = True",
        (f"{_RESTORED}::test_starting_once_makes_no_lost_log_a_new_one",),
    ),
    Mutation(
        "restore: a budget that the log lacks is being opened",
        "datasites/hospital/reconcile.py",
        "        if stored.epsilon > 0 and name not in under_way(home):\n",
        "        if False:\n",
        (f"{_RESTORED}::test_a_population_that_the_log_lacks_is_a_difference",),
    ),
    Mutation(
        "restore: a charged round runs again under a charge in full",
        "datasites/hospital/ledger.py",
        "        if account.is_in_full:\n",
        "        if False:\n",
        (f"{_RESTORED}::test_starting_once_makes_no_lost_log_a_new_one",),
    ),
    Mutation(
        "restore: a journal that is gone is a new one",
        "datasites/hospital/closing.py",
        "journal.floor == NOTHING_REACHED and _known_rounds(home, study_hash)",
        "journal.floor == NOTHING_REACHED and False",
        (f"{_RESTORED}::test_a_journal_that_is_gone_is_no_new_one",),
    ),
    Mutation(
        "noise: one uniform of 53 bits decides on tails",
        "datasites/privacy/noise.py",
        "    undecided = np.flatnonzero(happens & (chance < uniform + 2.0**-53))\n",
        "    undecided = np.flatnonzero(happens & (chance < uniform))\n",
        ("tests/privacy/test_noise.py::test_a_chance_is_met_far_below_what_one_uniform_can_tell",),
    ),
    Mutation(
        "restore: anchors are believed against a head that others hold",
        "datasites/hospital/settle.py",
        "    anchors_tell = not _foreign(home)\n",
        "    anchors_tell = True\n",
        (f"{_RESTORED}::test_anchors_that_came_back_with_the_home_tell_nothing_where_others_hold_a_head",),
    ),
    Mutation(
        "restore: a case in review explains a journal",
        "datasites/hospital/settle.py",
        'set(LedgerEntry.objects.values_list("study_hash", flat=True))\n    for told',
        'set(Case.objects.values_list("study_hash", flat=True))\n    for told',
        (f"{_RESTORED}::test_a_case_that_was_only_proposed_before_the_backup_explains_no_journal",),
    ),
    Mutation(
        "restore: journals without an anchor are of a new home",
        "datasites/hospital/ledger_log.py",
        'home.secagg.glob("*/journal"), ',
        "",
        (f"{_RESTORED}::test_what_a_study_leaves_behind_shows_that_a_home_without_log_and_anchors_is_no_new_one",),
    ),
    Mutation(
        "restore: a study that was charged in full goes on",
        "datasites/hospital/settle.py",
        "    if any(account.is_in_full for account in ledger_log.tell(home).accounts_of_study(study)):\n",
        "    if False:\n",
        (f"{_RESTORED}::test_a_charged_round_is_not_released_again_under_the_same_charge",),
    ),
    Mutation(
        "restore: a lost study explains every head",
        "datasites/hospital/settle.py",
        "    if not counted:\n",
        "    if not counted or lost:\n",
        (f"{_RESTORED}::test_a_lost_study_explains_its_own_releases_and_no_more",),
    ),
    Mutation(
        "restore: an older list puts patients back",
        "datasites/hospital/withdrawal.py",
        "    if logged:\n",
        "    if False:\n",
        (f"{_RESTORED}::test_a_list_that_came_back_from_a_backup_puts_nobody_back",),
    ),
    Mutation(
        "restore: what the ledger's anchor knows is forgotten",
        "datasites/hospital/settle.py",
        "(ledger_log.tell(home),) if anchor is None else (ledger_log.tell(home), anchor)",
        "(ledger_log.tell(home),) * 2",
        (f"{_SETTLE}::test_where_the_ledgers_anchor_is_there_it_says_what_was_charged",),
    ),
    Mutation(
        "restore: rejoining charges nothing",
        "datasites/hospital/review.py",
        "        charge_what_is_reached(site, row.study_hash)\n",
        "",
        (f"{_SETTLE}::test_rejoining_charges_rounds_that_the_journal_reached_and_nobody_charged",),
    ),
    Mutation(
        "restore: a kill in the round of a fork leaves the hospital out for good",
        "datasites/researcher/run.py",
        "declared.round if declared is not None else 0",
        "0",
        (f"{_RUN}::test_a_run_that_is_killed_right_after_a_fork_takes_it_again",),
    ),
    Mutation(
        "restore: a release from before it is sent again with other words",
        "datasites/hospital/leaving.py",
        'record.release.get("fork")',
        "told_fork(self._site.home)",
        (f"{_SETTLE}::test_a_release_from_before_a_restore_is_sent_again_as_it_was",),
    ),
    # When, and in which order.
    Mutation(
        "noised: the release policy is told so whatever ran",
        "datasites/hospital/rounds.py",
        "noised=computed.steps == (case.plan.steps_per_round if manifest.train else 0)",
        "noised=True",
        (f"{_CHARGES}::test_a_vector_that_was_noised_fewer_times_than_its_plan_says_stays_here",),
    ),
    Mutation(
        "order: a round is charged after it has trained",
        "datasites/hospital/rounds.py",
        "            asked = case.round_asked(manifest)\n",
        "            asked = case.round_asked(manifest)\n"
        "            self._rows.begin(case, manifest, parameters, lambda r: self._keys(case, manifest, r)).result()\n",
        (f"{_RUNNING}::test_a_round_is_charged_before_it_trains",),
    ),
    Mutation(
        "answer: a round that people sat out is released after all",
        "datasites/hospital/leaving.py",
        "            if record.state == Round.State.FAILED:\n                return None\n",
        "",
        (f"{_ABSTAINING}::test_people_who_answer_between_the_journal_and_the_record_are_heard",),
    ),
    Mutation(
        "answer: a round that is released is sat out after all",
        "datasites/hospital/review.py",
        "if site.audit.holds(RELEASED, study=row.study_hash, round=newest.round):",
        "if False:",
        (f"{_ABSTAINING}::test_a_round_whose_release_is_logged_is_not_sat_out",),
    ),
    Mutation(
        "keys: those of an offer are not held against the log",
        "datasites/hospital/epochs.py",
        "wrong = self._not_pinned(roster, (context.aggregator, *context.hospitals))",
        "wrong = list[str]()",
        (f"{_KEYS}::test_keys_that_are_typed_into_the_roster_are_not_set_up_with",),
    ),
    Mutation(
        "keys: a round is charged under one that was replaced",
        "datasites/hospital/rounds.py",
        "            self._setup.require_pinned_keys()\n            self._open(row, signed)\n",
        "            self._open(row, signed)\n",
        (
            f"{_KEYS}::test_a_key_that_was_replaced_is_believed_in_no_later_round_and_the_new_one_from_the_next_epoch_on",
        ),
    ),
    Mutation(
        "keys: a vector is masked under one that was revoked meanwhile",
        "datasites/hospital/rounds.py",
        '"release", row.approval_hash)\n        self._setup.require_pinned_keys()\n',
        '"release", row.approval_hash)\n',
        (f"{_KEYS}::test_a_key_that_is_revoked_while_rows_are_at_work_masks_nothing",),
    ),
    Mutation(
        "retry: the trainer draws by no key",
        "datasites/privacy/trainer.py",
        "    randomness = randomness or SecureRandom()\n",
        "    randomness = SecureRandom()\n",
        (f"{_TRAINER}::test_the_same_key_gives_the_same_bytes_and_another_independent_ones",),
    ),
    Mutation(
        "retry: the second try draws anew",
        "datasites/hospital/rounds.py",
        "RoundKeys(state.open.secret,",
        "RoundKeys(__import__('os').urandom(32),",
        (f"{_RETRY}::test_a_second_crash_stops_the_study_and_nothing_leaves_until_people_answer",),
    ),
    Mutation(
        "retry: other records, the same keys",
        "datasites/hospital/round_keys.py",
        "self.approval, self.records]",
        "self.approval]",
        (f"{_RETRY}::test_noise_of_other_inputs_is_independent_and_of_the_same_inputs_the_same",),
    ),
    Mutation(
        "tick: a release leaves as soon as it is done",
        "datasites/hospital/ticks.py",
        "return started + max(ticks, late) * TICK",
        "return started + late * TICK",
        (f"{_TICKS}::test_work_that_fits_leaves_at_one_moment_however_long_it_took",),
    ),
    Mutation(
        "tick: measured for a record of each patient",
        "datasites/hospital/cases.py",
        "invented_rows(self.dataset.declared_records,",
        "invented_rows(self.dataset.declared_patients,",
        (f"{_TICKS}::test_ticks_are_measured_on_as_many_rows_as_records_are_declared",),
    ),
    Mutation(
        "tick: measured for training or evaluation, where a round holds both",
        "datasites/enclave/worker.py",
        "sum(whole) if together else max(whole)",
        "max(whole)",
        ("tests/enclave/test_worker.py::test_a_measurement_is_of_all_that_the_longest_round_holds",),
    ),
    Mutation(
        "tick: reading a table takes as long as it takes",
        "datasites/hospital/admission.py",
        "sleep_to_tick(started, reading_ticks(dataset.declared_records, len(package.data_model.columns)), halt.check)",
        "sleep_to_tick(started, 1, halt.check)",
        (f"{_TICKS}::test_how_long_a_table_takes_to_read_shows_nowhere_within_what_was_allowed",),
    ),
    Mutation(
        "review: a study goes on before the log says that people resumed it",
        "datasites/hospital/rounds.py",
        "        if row.owed:\n",
        "        if False:\n",
        ("tests/hospital/test_owed.py::test_a_study_takes_no_step_before_the_log_holds_what_people_decided",),
    ),
    Mutation(
        "tick: the end is logged once a table has been read",
        "datasites/hospital/datasite.py",
        "        self._submissions.end()\n",
        "        self._submissions.close()\n",
        (f"{_SUBMISSIONS}::test_the_end_of_the_service_is_logged_before_it_waits_for_what_looks_at_rows",),
    ),
    Mutation(
        "tick: a rehearsal goes on while a round is at work",
        "datasites/hospital/machine.py",
        "worker.pause() if at_work else worker.resume()",
        "worker.resume()",
        (f"{_MACHINE}::test_a_rehearsal_gets_no_processor_and_loses_no_time_while_a_round_is_at_work",),
    ),
    Mutation(
        "tick: a look that fails is the last one at whether a round is at work",
        "datasites/hospital/machine.py",
        "                told = True\n",
        "                return\n",
        (f"{_MACHINE}::test_a_look_that_fails_lets_a_rehearsal_stand_still_until_the_next_one",),
    ),
    Mutation(
        "tick: a measurement counts the time in which it was stopped",
        "datasites/enclave/worker.py",
        "self._paused += time.monotonic() - self._paused_at",
        "pass",
        (
            "tests/enclave/test_worker.py::"
            "test_a_pause_takes_the_processor_and_counts_for_no_deadline_and_no_measurement",
        ),
    ),
    Mutation(
        "patients: two keep some at once and forget each other's",
        "datasites/hospital/patients.py",
        "        fcntl.flock(lock, fcntl.LOCK_EX)\n",
        "",
        (
            "tests/hospital/test_patients.py::"
            "test_nobody_is_forgotten_where_two_keep_patients_of_one_population_at_once",
        ),
    ),
    Mutation(
        "records are in their place before anything says which they are",
        "datasites/hospital/cases.py",
        'for name in ("prepared.json", PREPARED_FILE):',
        'for name in (PREPARED_FILE, "prepared.json"):',
        ("tests/hospital/test_staging.py::test_records_that_a_kill_left_half_kept_are_never_approved_as_whole",),
    ),
    Mutation(
        "patients: all of them in one portion",
        "datasites/hospital/patients.py",
        "_BITS = 12",
        "_BITS = 0",
        ("tests/hospital/test_patients.py::test_nothing_that_holds_patients_is_made_or_freed_in_one_piece",),
    ),
    Mutation(
        "patients: an older list is taken for all of them",
        "datasites/hospital/patients.py",
        "heading.whole and ledger_log.tell(home).token(population) in (heading.token, heading.before)",
        "heading.whole",
        ("tests/hospital/test_patients.py::test_an_older_list_of_patients_is_never_taken_for_all_of_them",),
    ),
    Mutation(
        "patients: the list after a lost one is taken for all of them",
        "datasites/hospital/patients.py",
        "_is_whole(home, population) or population not in _charged() | _listed(home)",
        "True",
        ("tests/hospital/test_patients.py::test_an_older_list_of_patients_is_never_taken_for_all_of_them",),
    ),
    Mutation(
        "patients: lists are known after a restore in which the log lost records",
        "datasites/hospital/ledger_log.py",
        "lists=dict.fromkeys(self.lists, unknown), lists_begin=unknown",
        "lists=self.lists",
        (
            "tests/hospital/test_patients.py::"
            "test_after_a_restore_of_the_log_no_list_of_patients_is_taken_for_all_of_them",
        ),
    ),
    # Store, protocol, evidence, sandbox and intake.
    Mutation(
        "seizure: the key that opens stored bundles outlives ready",
        "datasites/secagg/setup.py",
        '        hpke_private=b"",\n',
        "        hpke_private=state.hpke_private,\n",
        ("tests/secagg/test_seizure.py", "tests/secagg/test_setup.py"),
    ),
    Mutation(
        "journal: what a failed step left stays until the next start",
        "datasites/secagg/journal.py",
        "        if self._unclean:\n            self._finish()\n",
        "",
        ("tests/secagg/test_seizure.py::test_what_a_step_that_failed_has_left_is_gone_after_the_next",),
    ),
    Mutation(
        "store: strangers' letters fill the audit log",
        "datasites/hospital/correspondence.py",
        "        if hour.records >= RECORDS_PER_HOUR:\n",
        "        if False:\n",
        ("tests/hospital/test_hostile_mailbox.py",),
    ),
    Mutation(
        "store: a lost letter is not put again",
        "datasites/hospital/correspondence.py",
        "                self._posted.discard((to, number, kind))\n",
        "                pass\n",
        ("tests/hospital/test_hostile_mailbox.py",),
    ),
    Mutation(
        "kill: what was taken and not yet removed is an alarm",
        "datasites/transport/guards.py",
        "            if not log.leaving(channel, name):\n",
        "            if True:\n",
        ("tests/transport/test_hostile_folder.py::test_a_hospital_killed_at_any_point_raises_no_alarm",),
    ),
    Mutation(
        "kill: what was taken is taken again",
        "datasites/transport/guards.py",
        "                if log.handled(channel, name):\n",
        "                if False:\n",
        (
            "tests/transport/test_hostile_folder.py",
            "tests/adversarial/test_transport_syft.py::test_a_replay_is_refused",
        ),
    ),
    Mutation(
        "setup: shares that nobody sends are waited for",
        "datasites/secagg/setup.py",
        "    neighbours = epoch.graph.neighbours(epoch.place(identity.email))\n",
        "    neighbours = range(len(epoch.members))\n",
        ("tests/secagg/test_setup.py",),
    ),
    Mutation(
        "keys: training and evaluation of a round share one",
        "datasites/hospital/row_work.py",
        '                key=keys.key("evaluation"),\n',
        '                key=keys.key("training"),\n',
        (f"{_RETRY}::test_training_and_evaluation_of_a_round_have_keys_of_their_own",),
    ),
    Mutation(
        "population: one table is other people under another column",
        "datasites/hospital/cases.py",
        "rows=rows if named else ()",
        "rows=()",
        ("tests/hospital/test_patients.py::test_the_same_table_is_known_whatever_column_names_patients",),
    ),
    Mutation(
        "withdrawal: a worker at work keeps the patient's rows",
        "datasites/hospital/row_work.py",
        "if self._worker is not None and gone != self._withdrawn:",
        "if self._worker is not None and False:",
        (f"{_RETRY}::test_a_worker_at_work_gets_other_rows_and_keys_after_a_withdrawal",),
    ),
    Mutation(
        "retry: a restart forgets the failures of a round",
        "datasites/hospital/row_work.py",
        "                failed = failures.of(number)\n",
        "                failed = 0\n",
        (f"{_RETRY}::test_a_restart_between_two_crashes_gives_no_further_try",),
    ),
    Mutation(
        "run: keys that the store lost between two rounds are not put again",
        "datasites/researcher/secure_sum.py",
        "        self._save()\n        self._publish()\n        body",
        "        self._save()\n        body",
        (f"{_RUN}::{_KEYS_LOST}",),
    ),
    Mutation(
        "run: keys that the store lost in a round are not put again",
        "datasites/researcher/gather.py",
        "            question.publish()\n",
        "            pass\n",
        (f"{_RUN}::{_KEYS_LOST}",),
    ),
    Mutation(
        "epoch: none follows where a hospital says that it lacks keys",
        "datasites/researcher/asking.py",
        "    return lacking if len(there) >= threshold else set()\n",
        "    return set()\n",
        (f"{_RUN}::test_hospitals_that_gave_their_keys_up_are_let_in_by_another_epoch",),
    ),
    Mutation(
        "epoch: one is begun that others would refuse",
        "datasites/researcher/asking.py",
        "    return lacking if len(there) >= threshold else set()\n",
        "    return lacking\n",
        (f"{_RUN}::test_an_epoch_follows_once_all_have_pinned_a_key_that_was_replaced",),
    ),
    Mutation(
        "epoch: a round that can't open is waited for to the end",
        "datasites/researcher/secure_sum.py",
        "len(came) >= threshold or len(wanted - declined) < threshold",
        "len(came) >= threshold",
        (f"{_RUN}::test_a_round_that_can_not_open_is_not_waited_for_to_the_end",),
    ),
    Mutation(
        "epoch: who has no keys says nothing",
        "datasites/hospital/rounds.py",
        "        if state is not None and (member is None or state.enrolment is None):\n",
        "        if member is None or state is None or state.enrolment is None:\n",
        (
            "tests/hospital/test_abstaining.py::"
            "test_a_hospital_that_gave_its_keys_up_says_so_of_each_new_round_until_the_next_epoch",
        ),
    ),
    Mutation(
        "epoch: none follows one that is used up",
        "datasites/researcher/run.py",
        "        elif self._sum.is_over(self.state.next_round):\n",
        "        elif False:\n",
        (f"{_RUN}::test_an_epoch_whose_days_are_over_is_followed_by_another",),
    ),
    Mutation(
        "epoch: none follows one in which too few are left",
        "datasites/researcher/run.py",
        "        elif self._too_few_are_left():\n",
        "        elif False:\n",
        (f"{_RUN}::test_an_epoch_in_which_too_few_are_left_is_followed_by_another",),
    ),
    Mutation(
        "agreements: what was typed into the registry counts",
        "datasites/hospital/entered_log.py",
        "    if not is_bound(home, record.fields.get(FIELD), agreement_content(agreement)):\n",
        "    if False:\n",
        (f"{_ENTRIES}::test_an_agreement_typed_into_the_registry_passes_for_none",),
    ),
    Mutation(
        "agreements: an end that was typed into the registry counts",
        "datasites/hospital/entered_log.py",
        "    if agreement.terminated_on is not None and end <= entered.begun[key]:\n",
        "    if False:\n",
        (f"{_ENTERED}::test_an_end_that_was_typed_into_the_registry_takes_no_agreement_away",),
    ),
    Mutation(
        "agreements: who confirms may have typed the entry",
        "datasites/hospital/agreements.py",
        "        require_entered(site.home, known.latest(id), person.name)\n",
        "",
        (f"{_ENTERED}::test_who_confirms_confirms_what_was_entered",),
    ),
    Mutation(
        "agreements: an edited opening opens another content",
        "datasites/hospital/bindings.py",
        "    return [commit(salt, content) for salt in salts if len(salt) == SALT_BYTES] == [commitment]\n",
        "    return [one['content'] for one in openings(home, [commitment])] == [dict(content)]\n",
        (f"{_ENTERED}::test_an_opening_that_was_edited_opens_nothing",),
    ),
    Mutation(
        "agreements: a data use agreement that is over narrows no more",
        "policies/registry.py",
        '        return tuple(a for a in self._begun(on, "dua") if purpose in a.terms.purposes)\n',
        '        return tuple(a for a in self.in_force(on, "dua") if purpose in a.terms.purposes)\n',
        ("tests/policies/test_registry.py::test_an_end_by_one_person_only_narrows",),
    ),
    Mutation(
        "parties: who pins may have typed the proposal",
        "datasites/hospital/parties.py",
        "        require_proposed(site.home, entry, person.name)\n",
        "",
        (f"{_ENTERED}::test_one_person_alone_brings_no_party_in",),
    ),
    Mutation(
        "budget: who confirms may have typed the proposal",
        "datasites/hospital/entered_log.py",
        "    problem = _not_of_another(home, record, proposal_content(kind, subject, terms), by)\n",
        '    problem = ""\n',
        (f"{_ENTERED}::test_one_person_alone_takes_no_risk_of_a_larger_delta",),
    ),
    Mutation(
        "parties: an older roster brings back who was revoked",
        "datasites/hospital/entered_log.py",
        "        elif entered.revoked.get(entry.email, 0) > pin.seq:\n",
        "        elif False:\n",
        (f"{_ENTRIES}::test_an_older_copy_of_the_roster_shows_as_one",),
    ),
    Mutation(
        "people: who was typed into the database counts",
        "datasites/hospital/entered_log.py",
        "        elif not is_bound(home, added.fields.get(FIELD), person_content(name, role, email)) or any(\n",
        "        elif False and any(\n",
        (f"{_ENTRIES}::test_somebody_who_was_shut_out_is_not_brought_back_by_an_older_database",),
    ),
    Mutation(
        "people: an admin is believed by the database alone",
        "datasites/hospital/people.py",
        "(user.username, role, user.email)]) if entered else []\n",
        "(user.username, role, user.email)]) if entered and role in REVIEWERS else []\n",
        (f"{_ENTERED}::test_a_role_that_was_edited_to_admin_counts_for_nothing",),
    ),
    Mutation(
        "people: the first admin is not logged",
        "datasites/hospital/people.py",
        '    enter_person(site, FIRST_ADMIN, "admin", password)\n',
        '    add_person(FIRST_ADMIN, "admin", password)\n',
        (f"{_ENTERED}::test_the_first_admin_is_logged_and_their_address_can_not_be_edited",),
    ),
    Mutation(
        "people: an older database brings back who was shut out",
        "datasites/hospital/entered_log.py",
        "        elif entered.shut_out.get(name, 0) > added.seq and not past:\n",
        "        elif False:\n",
        (f"{_ENTRIES}::test_somebody_who_was_shut_out_is_not_brought_back_by_an_older_database",),
    ),
    Mutation(
        "agreements: an older registry brings back what was replaced",
        "datasites/hospital/entered_log.py",
        "            if (id, version) not in held and version >= counts.get(id, 0):\n",
        "            if False:\n",
        (f"{_ENTRIES}::test_an_older_copy_of_the_registry_brings_no_agreement_back",),
    ),
    Mutation(
        "address: options of the database are dropped",
        "datasites/hospital/postgresql.py",
        "options={**_PATIENCE, **said})",
        "options=dict(_PATIENCE))",
        (f"{_SETTINGS}::test_what_an_address_says_reaches_the_connection",),
    ),
    Mutation(
        "address: an option that is not known is let through",
        "datasites/hospital/postgresql.py",
        "        for name in _option_names(url):\n            _require_known(url, name)\n",
        "",
        (f"{_SETTINGS}::test_what_is_not_understood_is_refused_by_name",),
    ),
    Mutation(
        "address: an option's value is shown whatever it is",
        "datasites/study/addresses.py",
        '            options.append(f"{name}={HIDDEN}")\n',
        "            options.append(option)\n",
        ("tests/study/test_addresses.py", f"{_SETTINGS}::test_no_address_of_any_setting_is_said_with_its_secret"),
    ),
    Mutation(
        "sandbox: none that can be made is taken for one",
        "datasites/enclave/sandbox.py",
        "        if done.returncode != 0:\n",
        "        if False:\n",
        (f"{_ALLOWING}::test_one_sentence_names_the_reason_and_what_to_allow",),
    ),
    Mutation(
        "sandbox: a study is blamed for a machine that makes none",
        "datasites/enclave/worker.py",
        "                sandbox.require()\n                raise\n",
        "                raise\n",
        (f"{_ALLOWING}::test_a_worker_is_not_blamed_for_it",),
    ),
    Mutation(
        "outage: a database that is away denies",
        "datasites/hospital/compliance.py",
        "    except DATABASE_AWAY:\n        raise\n",
        "",
        ("tests/hospital/test_outages.py",),
    ),
    Mutation(
        "outage: an abstention is logged before it is decided",
        "datasites/hospital/rounds.py",
        "            # Decided once this is saved: ",
        '            told = {"reason": reason, "outcome": outcome, "controls": list(controls)}\n'
        '            self._site.audit.append_once("abstained", study=self.study_hash, round=number, **told)\n'
        "            # Decided once this is saved: ",
        ("tests/hospital/test_outages.py::test_an_abstention_is_decided_logged_and_said_once",),
    ),
    Mutation(
        "evidence: a charge's round is the entry's word",
        "datasites/hospital/verify_bundle.py",
        '    for name in ("round", "population"):\n',
        '    for name in ("population",):\n',
        ("tests/hospital/test_evidence_entries.py",),
    ),
    Mutation(
        "intake: types are not exact",
        "datasites/study/errors.py",
        "model.model_validate_json(plain, strict=True)",
        "model.model_validate_json(plain)",
        ("tests/study/test_package.py",),
    ),
    Mutation(
        "intake: other letters stand in texts that code works with",
        "datasites/enclave/verifier.py",
        "        _names_and_texts_are_plain(tree, report)\n",
        "        pass\n",
        ("tests/enclave/test_verifier.py",),
    ),
    Mutation(
        "worker: a model of another size than approved runs",
        "datasites/enclave/worker.py",
        "        if approved is not None and count != approved:\n",
        "        if False:\n",
        ("tests/hospital/test_running.py::test_a_worker_whose_model_has_another_size_than_approved_is_refused",),
    ),
    Mutation(
        "sandbox: /proc shows what is root's",
        "datasites/enclave/sandbox.py",
        '                    mounts += ["--tmpfs", entry.path, "--remount-ro", entry.path]\n',
        "                    pass\n",
        ("tests/enclave/test_sandbox.py::test_of_proc_only_what_was_named_holds_anything",),
    ),
    Mutation(
        "sandbox: the C library sets addresses aside for each thread",
        "datasites/enclave/sandbox.py",
        '            "MALLOC_ARENA_MAX": "2",\n',
        "",
        ("tests/enclave/test_sandbox.py::test_threads_leave_a_worker_the_addresses_of_its_memory",),
    ),
    Mutation(
        "worker: its code clears the signal by which it ends with the datasite",
        "datasites/enclave/confine.py",
        "(_JEQ, 1, 0, _PR_SET_PDEATHSIG), ",
        "",
        (f"{_ENDING}::test_a_worker_that_lets_go_of_its_parent_ends_with_the_datasite",),
    ),
    Mutation(
        "worker: a kill ends its first process alone",
        "datasites/enclave/processes.py",
        "        found = list(family(pid))\n",
        "        found = [pid]\n",
        (f"{_ENDING}::test_a_worker_that_lets_go_of_its_parent_is_killed_with_all_its_processes",),
    ),
    Mutation(
        "worker: stopped before the kernel knows with whom it ends",
        "datasites/enclave/worker.py",
        " and processes.bound(self.pid)",
        "",
        (f"{_ENDING}::test_a_worker_that_was_paused_as_it_started_ends_with_the_datasite",),
    ),
    Mutation(
        "worker: what was sent by a datasite that has ended is begun",
        "datasites/enclave/inside.py",
        "    if _left_alone(requests):\n",
        "    if False:\n",
        (f"{_ENDING}::test_what_a_datasite_sent_that_has_ended_is_not_begun",),
    ),
    Mutation(
        "sandbox: root serves without a word",
        "datasites/hospital/setup.py",
        "    if os.geteuid() == 0 and not home.settings.run_as_root:\n",
        "    if False:\n",
        ("tests/hospital/test_machine.py",),
    ),
    # Beyond the usual ones.
    Mutation(
        "filter: the order is chosen anew at each look",
        "datasites/hospital/ledger.py",
        "return epsilon_at_order(events, self.order, self.caps.delta)",
        "return epsilon_rdp(events, self.caps.delta)",
        (f"{_LEDGER}::test_the_cap_is_kept_at_the_one_order_that_its_budget_was_opened_at",),
    ),
    Mutation(
        "split: a patient's side depends on the place in the table",
        "datasites/privacy/sampling.py",
        "for patient in patient_ids)",
        "for patient in range(len(list(patient_ids))))",
        (_SAMPLING,),
    ),
    Mutation(
        "lattice: discrete noise is priced as continuous",
        "datasites/study/rounds.py",
        "LATTICE = math.sqrt(",
        "LATTICE = 1.0 + 0 * math.sqrt(",
        ("tests/privacy/test_lattice.py", _PRICES),
    ),
    Mutation(
        "ring: the sum is cut after its noise",
        "datasites/privacy/trainer.py",
        "np.clip(clipped, -ring.cut, ring.cut)",
        "np.clip(clipped, -ring.bound, ring.bound)",
        (f"{_TRAINER}::test_a_sum_is_cut_before_its_noise_and_stays_within_the_bound_with_it",),
    ),
)
