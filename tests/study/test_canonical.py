"""One value has one byte string; otherwise a signature and its meaning could drift apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from datasites.study.canonical import Agreed, canonical_json


class Sample(Agreed):
    name: str
    value: float
    words: tuple[str, ...] = ()


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text()))
def test_what_was_written_is_read_back(name: str, value: float, words: list[str]) -> None:
    try:
        name.encode()
        "".join(words).encode()
    except UnicodeEncodeError:
        return
    sample = Sample(name=name, value=value, words=tuple(words))
    assert Sample.parse(sample.canonical()) == sample
    assert Sample.parse(sample.canonical()).digest() == sample.digest()


@pytest.mark.parametrize(
    "data",
    [
        b'{"name":"a","value":1.0,"words":[] }',
        b'{"value":1.0,"name":"a","words":[]}',
        b'{"name":"b","name":"a","value":1.0,"words":[]}',
        b'{"name":"a","value":1.00,"words":[]}',
        b'{"name":"a","value":1.0}',
    ],
)
def test_a_second_byte_string_for_the_same_value_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="canonical"):
        Sample.parse(data)


def test_unknown_words_and_nan_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Sample.parse(b'{"extra":1,"name":"a","value":1.0,"words":[]}')
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})
    with pytest.raises(ValidationError):
        Sample(name="a", value=float("inf"))
