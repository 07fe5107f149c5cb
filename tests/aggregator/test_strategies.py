"""Server strategies against their published update rules, written out by hand."""

import numpy as np
import pytest

from datasites.aggregator.strategies import strategy_of
from datasites.study.errors import InputError
from datasites.study.manifest import Strategy

MODEL, FIRST, SECOND = np.array([1.0, -2.0]), np.array([0.5, 0.25]), np.array([-0.1, 0.2])


def test_fedavg_adds_the_mean_update() -> None:
    assert np.array_equal(strategy_of(Strategy()).next_model(MODEL, FIRST), MODEL + FIRST)


def test_momentum_carries_the_last_update_over() -> None:
    strategy = strategy_of(Strategy(name="fedavgm", options={"momentum": 0.5}))
    once = strategy.next_model(MODEL, FIRST)
    assert np.allclose(strategy.next_model(once, SECOND), once + 0.5 * FIRST + SECOND)


def test_fedadam_follows_the_paper() -> None:
    strategy = strategy_of(Strategy(name="fedadam", options={"learning_rate": 0.1, "tau": 0.01}))
    first, second = 0.1 * FIRST, 0.99 * 0.01**2 + 0.01 * FIRST**2
    assert np.allclose(strategy.next_model(MODEL, FIRST), MODEL + 0.1 * first / (np.sqrt(second) + 0.01))


@pytest.mark.parametrize(
    "strategy", [Strategy(name="magic"), Strategy(options={"speed": 1}), Strategy(options={"learning_rate": "fast"})]
)
def test_an_unknown_strategy_or_option_is_named(strategy: Strategy) -> None:
    with pytest.raises(InputError, match=r"study\.toml: strategy"):
        strategy_of(strategy)
