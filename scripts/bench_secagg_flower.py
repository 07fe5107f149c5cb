"""Times Flower's own SecAgg+ functions; run by `bench_secagg.py` with the Python of an environment that has Flower.

Calls Flower's client code unchanged (`_setup`, `_share_keys`, `_collect_masked_vectors`) for one hospital of n with n
shares, so that every pair masks, and Flower's server arithmetic for single masks. Reads cases as JSON from standard
input ([[n, d], ...]) and writes one JSON object per case. Imports nothing of datasites.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
)
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_subtraction
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

#: Flower's defaults: quantization to 2**22 steps, masks modulo 2**32.
TARGET, MODULUS, CLIPPING = 2**22, 2**32, 8.0


def client_wave(n: int, d: int) -> float:
    """Least seconds of Flower's `_collect_masked_vectors` for one of n clients and d parameters."""
    threshold = 2 * n // 3 + 1
    setup = {
        Key.SAMPLE_NUMBER: n,
        Key.SHARE_NUMBER: n,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIPPING,
        Key.TARGET_RANGE: TARGET,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: 1000.0,
    }
    states = [SecAggPlusState(nid=i) for i in range(n)]
    keys = {}
    for state in states:
        state.current_stage = Stage.SETUP
        reply = _setup(state, ConfigRecord(setup))
        keys[str(state.nid)] = [reply[Key.PUBLIC_KEY_1], reply[Key.PUBLIC_KEY_2]]
    sources, texts = [], []
    for state in states:
        reply = _share_keys(state, ConfigRecord(keys))
        if state.nid:
            sources.append(state.nid)
            texts.append(reply[Key.CIPHERTEXT_LIST][reply[Key.DESTINATION_LIST].index(0)])
    update = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    parameters = ndarrays_to_parameters([update])
    configs = ConfigRecord({Key.CIPHERTEXT_LIST: texts, Key.SOURCE_LIST: sources})
    times = []
    for _ in range(3):
        started = time.perf_counter()
        _collect_masked_vectors(states[0], configs, 1000, parameters)
        times.append(time.perf_counter() - started)
    return min(times)


def one_mask(d: int, repeats: int = 20) -> float:
    """Seconds for one mask at Flower's server: make it and take it off (least of some)."""
    vector = [np.zeros(d, np.int64)]
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        vector = parameters_subtraction(vector, pseudo_rand_gen(b"seed" * 8, MODULUS, [(d,)]))
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    for hospitals, length in json.load(sys.stdin):
        print(
            json.dumps(
                {"n": hospitals, "d": length, "client": client_wave(hospitals, length), "mask": one_mask(length)}
            ),
            flush=True,
        )
