"""Evidence bundles that the hospital signed throughout, and that ask of the verifier what has no end or grows twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from datasites.hospital.audit.log import PublicHead
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import Identity
from tests.adversarial.tampered_archives import Files, Tampered
from tests.adversarial.tampered_contents import Records, in_the_log, with_key
from tests.hospital.evidence_of import POPULATION, edited, rechain

STEP = {"count": 1, "format": 1, "mechanism": "poisson_sampled_gaussian", "noise_multiplier": 4.0, "sampling_rate": 0.1}
FINAL = {"count": 2, "format": 1, "mechanism": "gaussian", "noise_multiplier": 5.0, "sampling_rate": 1.0}
#: What a log of some megabytes holds of each.
MANY, RESTORES, HEADS = 5_000, 40_000, 25_000


def of_work() -> Iterator[Tampered]:
    """All of them."""
    yield Tampered(
        "work without end",
        "a plan of 10**19 rounds, reserved as such",
        "charges",
        "whose rounds is '10000000000000000000', and not a whole number of 1 to 10000",
        with_key(partial(_plan_of, rounds=10**19)),
    )
    for name, value in (("rounds", 0), ("rounds", True), ("rounds", 3.0), ("rounds", "3"), ("steps_per_round", [1])):
        yield Tampered(
            "a plan with odd figures",
            f"{name} {value!r}",
            "charges",
            f"whose {name} is ",
            with_key(partial(_plan_of, **{name: value})),
        )
    yield Tampered(
        "a plan with odd figures",
        "noise that has no price",
        "caps",
        "ZeroDivisionError",
        in_the_log(lambda bodies: _add(bodies, _reserved(0, noise_multiplier=1e-200))),
    )
    yield Tampered(
        "work without end",
        f"{MANY} studies priced at {MANY} orders, one after the other",
        "caps",
        "changes the Renyi order more than 16 times",
        in_the_log(partial(_prices, studies=MANY, orders=MANY, mechanisms=1)),
    )
    yield Tampered(
        "work without end",
        "more mechanisms than any population has, by few orders",
        "caps",
        "charges more than 10000 mechanisms",
        in_the_log(partial(_prices, studies=1_000, orders=12, mechanisms=1_000)),
    )
    yield Tampered(
        "work without end",
        "a study that reserves hundreds of mechanisms",
        "caps",
        "reserved or was charged more than 64 mechanisms",
        in_the_log(
            lambda bodies: _add(
                bodies, _reserved(0, charges=[{**STEP, "noise_multiplier": 4.0 + n} for n in range(65)])
            )
        ),
    )
    yield Tampered(
        "work without end",
        f"{RESTORES} restores, and {HEADS} heads of what they lost",
        "heads",
        "lacks the record that heads.json knows (release 0)",
        with_key(_restores),
    )


def _plan_of(files: Files, key: Identity, **figures: Any) -> None:
    """Terms of another plan, with an interim evaluation, and a log that reserved it whole and charged nothing."""
    edited(files, "terms.json", lambda terms: terms["plan"].update({"steps_per_round": 1} | figures))
    evaluation = {"interim": 1, "interim_multiplier": 5.0}
    edited(files, "terms.json", lambda terms: terms["evaluation_plan"].update(evaluation))
    files["ledger.json"] = b"[]"
    rounds = json.loads(files["terms.json"])["plan"]["rounds"]
    steps = {**STEP, "count": rounds if type(rounds) is int and rounds else 3}
    text = canonical_json({"held_out": [FINAL], "training": [steps]}).decode()

    def reserve(bodies: Records) -> None:
        bodies[:] = [body for body in bodies if body["kind"] != "charged"]
        for body in bodies:
            if body["kind"] == "reserved":
                body["fields"].update(charges=text, local_charges=text)

    rechain(files, key, reserve)


def _add(bodies: Records, *more: dict[str, Any]) -> None:
    bodies += [{"time": bodies[-1]["time"], **body} for body in more]


def _reserved(number: int, charges: list[dict[str, Any]] | None = None, **step: Any) -> dict[str, Any]:
    """A reservation of another study."""
    text = canonical_json({"training": charges or [{**STEP, **step}]}).decode()
    fields = {"study": sha256_hex(b"%d" % number), "population": POPULATION, "charges": text, "local_charges": text}
    return {"kind": "reserved", "fields": fields}


def _prices(bodies: Records, studies: int, orders: int, mechanisms: int) -> None:
    """Studies that reserve one of so many mechanisms each, and promises at one order after the other."""
    _add(bodies, *(_reserved(n, noise_multiplier=4.0 + n % mechanisms / 1000) for n in range(studies)))
    settled = {"population": POPULATION, "epsilon": 2.9, "delta": 1e-5}
    _add(bodies, *({"kind": "budget_settled", "fields": {**settled, "order": 2 + n % 50}} for n in range(orders)))


def _restores(files: Files, key: Identity) -> None:
    """Heads of the lost part that the last of many restores explains, and one that none does."""
    rechain(files, key, _restored)
    held = [PublicHead.sign(key, 1, sha256_hex(b"%d" % number)) for number in range(HEADS)]
    held.append(PublicHead.sign(key, 0, "ab" * 32))
    files["heads.json"] = canonical_json([{"holder": "x@university.example", "head": h.model_dump()} for h in held])


def _restored(bodies: Records) -> None:
    first, last = (next(b["hash"] for b in order if b["kind"] == "released") for order in (bodies, bodies[::-1]))
    people = {"entered_by": "ann", "confirmed_by": "bob"}
    continued = [last] * RESTORES + [first]
    _add(bodies, *({"kind": "restored", "fields": {"continues": hash, **people}} for hash in continued))
