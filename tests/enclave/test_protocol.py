"""The pipe's protocol: what is written is read back, and nothing else is believed."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from datasites.enclave import protocol
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.study.manifest import LocalTraining

COUNTED = EvaluationPlan(edges=(0.0, 0.5, 1.0), final_multiplier=2.0)
PLAN = PrivacyPlan(clip=1.0, noise_multiplier=1.1, sampling_rate=0.3, rounds=3, steps_per_round=2)
MESSAGES = [
    protocol.LoadCode(source="x = 1\n", n_features=3, config={"hidden": 4, "names": ["a"]}),
    protocol.LoadData(partition="training"),
    protocol.Train(round=2, plan=PLAN, training=LocalTraining(steps=2, learning_rate=0.5), divisor=30.0, key="0f" * 32),
    protocol.Evaluate(plan=COUNTED, evaluation="final", key="0f" * 32),
    protocol.Initialise(),
    protocol.Leave(),
    protocol.Trained(steps=2),
    protocol.Failed(failure="refused", rule="dependent-rows", reason="a row"),
]


def frame(message, arrays=None):
    return b"".join(bytes(part) for part in protocol.encode(message, arrays))


def read(data, **limits):
    stream = io.BytesIO(data)

    def exactly(count):
        found = stream.read(count)
        if len(found) < count:
            raise EOFError
        return found

    return protocol.decode(exactly, **limits)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.kind)
def test_a_message_comes_back(message):
    assert read(frame(message)) == (message, {})


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
        st.sampled_from(["float32", "float64", "int64"]).flatmap(
            lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
        ),
        max_size=4,
    )
)
def test_arrays_come_back_bit_for_bit(given_arrays):
    message, found = read(frame(protocol.Done(), given_arrays))
    assert message == protocol.Done()
    assert set(found) == set(given_arrays)
    for name, array in given_arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


def test_an_object_array_does_not_travel():
    with pytest.raises(protocol.ProtocolError, match="does not travel"):
        protocol.encode(protocol.Done(), {"x": np.array([object()])})


def forged(header, body=b"", magic=b"DSW1", body_length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<4sIQ", magic, len(text), len(body) if body_length is None else body_length) + text + body


def layout(kind, length):
    return {"name": "x", "type": kind, "shape": [length]}


def shaped(shape):
    return {"name": "x", "type": "int64", "shape": shape}


DONE = {"kind": "done"}


def listing(*shapes):
    return {"kind": "description", "parameters": [{"name": "w", "shape": shape} for shape in shapes], "findings": []}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello from model code, printed on standard output", "magic"),
        (forged({"message": DONE, "arrays": []}, magic=b"DSW0"), "magic"),
        (forged(b"not json"), "not a message"),
        (forged({"message": DONE}), "not a message"),
        (forged({"message": {"kind": "root"}, "arrays": []}), "not a message"),
        (forged({"message": {**DONE, "more": 1}, "arrays": []}), "not a message"),
        (forged({"message": {"kind": "trained", "steps": -1}, "arrays": []}), "not a message"),
        (
            forged({"message": DONE, "arrays": [{"name": "x", "type": "object", "shape": [1]}]}, b"12345678"),
            "not a message",
        ),
        (
            forged({"message": DONE, "arrays": [{"name": "x", "type": "int64", "shape": [-1]}]}, b"12345678"),
            "not a message",
        ),
        (forged({"message": DONE, "arrays": [{"name": "x", "type": "int64", "shape": [2]}]}, b"12345678"), "sizes"),
        (forged({"message": DONE, "arrays": [{"name": "x", "type": "int64", "shape": [2**40]}]}, b"12345678"), "sizes"),
        (forged({"message": DONE, "arrays": [{"name": "x", "type": "int64", "shape": [1]}] * 2}, bytes(16)), "twice"),
        (forged(b"[" * 100_000), "not a message"),
        (forged({"message": DONE, "arrays": [shaped([2**62, 2**62, 0])]}), "not a message"),
        (forged({"message": DONE, "arrays": [shaped([2**20, 2**20, 2**20, 0])]}), "not a message"),
        (forged({"message": DONE, "arrays": [shaped([1] * 9)]}, bytes(8)), "not a message"),
        (forged(b'{"message": {"kind": "trained", "steps": ' + b"9" * 5000 + b'}, "arrays": []}'), "not a message"),
        (forged({"message": {"kind": "trained", "steps": 2**40}, "arrays": []}), "not a message"),
        (forged({"message": listing([2**63]), "arrays": []}), "not a message"),
        (forged({"message": listing(*[[]] * 20_001), "arrays": []}), "not a message"),
        (
            forged(
                b'{"message": {"kind": "rehearsed", "rounds": 1, "steps": 1, "seconds_per_round": Infinity,'
                b' "peak_memory_bytes": 1, "findings": []}, "arrays": []}'
            ),
            "not a message",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_frame_is_refused(data, words):
    with pytest.raises(protocol.ProtocolError, match=words):
        read(data)


def test_a_frame_above_the_limits_is_refused_before_it_is_read():
    asked = []

    def only_the_prefix(count):
        asked.append(count)
        assert len(asked) == 1, "the body was asked for"
        return struct.pack("<4sIQ", b"DSW1", 100, 2**60)

    with pytest.raises(protocol.ProtocolError, match="above"):
        protocol.decode(only_the_prefix)


def test_only_the_arrays_that_were_asked_for_are_read():
    data = frame(protocol.Done(), {"x": np.zeros((2, 3), np.float32)})
    wanted = (protocol.ArrayLayout(name="x", type="float32", shape=(2, 3)),)
    assert set(read(data, expected=wanted)[1]) == {"x"}
    assert read(frame(protocol.Done()), expected=wanted)[1] == {}
    for change in ({"name": "y"}, {"shape": (3, 2)}, {"shape": (6,)}, {"type": "int64", "shape": (3,)}):
        with pytest.raises(protocol.ProtocolError, match="may stand"):
            read(data, expected=(wanted[0].model_copy(update=change),))
    with pytest.raises(protocol.ProtocolError, match="above"):
        read(data, expected=())


def test_a_cut_frame_is_the_end_of_the_pipe():
    data = frame(protocol.Done(), {"x": np.zeros(4, dtype=np.float32)})
    for length in range(len(data)):
        with pytest.raises(EOFError):
            read(data[:length])
