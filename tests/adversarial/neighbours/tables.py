"""Invented tables, and their neighbours: the same without one patient's records."""

from __future__ import annotations

from collections.abc import Collection

#: The patient who is there or not. Bears, beside an ordinary record, one beyond the range of its feature, of which the
#: study's model makes a code out of range, and one that is not finite, and on which that model is not finite either.
SOMEBODY = "P-00"


def table(patients: Collection[str], unfit: bool = False) -> str:
    """A table of these patients: two records each, and four of `SOMEBODY`'s, one more where it is to be unfit."""
    lines = ["id,age,sex,pressure,disease"]
    for name in sorted(patients):
        number = int(name.removeprefix("P-"))
        lines += [
            f"{name},{30 + 7 * (number + 3 * visit) % 50},{number % 2},{105 + 11 * (number + visit) % 70},"
            f"{(number // 2 + visit) % 2}"
            for visit in range(2)
        ]
        if name == SOMEBODY:
            lines += [f"{name},47,1,30,1", f"{name},47,1,inf,1"] + [f"{name},47,1,high,1"] * unfit
    return "\n".join([*lines, ""])


def everybody(count: int = 30) -> tuple[str, ...]:
    """Names of the patients of an ordinary table."""
    return tuple(f"P-{number:02d}" for number in range(count))


def without(patients: Collection[str], name: str = SOMEBODY) -> tuple[str, ...]:
    """All patients but one."""
    return tuple(one for one in patients if one != name)
