"""How the next global model is made from the secure sum; pure functions on flat float64 vectors.

A strategy sees the weighted mean update of the survivors and nothing of any single hospital. All of it is
post-processing of noised updates and costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np

from datasites.study.errors import InputError
from datasites.study.manifest import Strategy


class ServerStrategy(Protocol):
    """Makes the next model; may keep state between rounds: named arrays, (parameters,), that survive a restart."""

    state: dict[str, np.ndarray]

    def next_model(self, model: np.ndarray, mean_update: np.ndarray) -> np.ndarray:
        """Return the next model; arguments and result have shape (parameters,)."""
        ...


@dataclass
class FedAvg:
    """McMahan et al. 2017, Algorithm 1, with a server step size: next = model + learning_rate * mean update."""

    learning_rate: float = 1.0
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def next_model(self, model: np.ndarray, mean_update: np.ndarray) -> np.ndarray:
        """Apply the rule of the class; arguments and result have shape (parameters,)."""
        return model + self.learning_rate * mean_update


@dataclass
class FedAvgM:
    """Hsu, Qi and Brown 2019: server momentum, velocity = momentum * velocity + mean update."""

    learning_rate: float = 1.0
    momentum: float = 0.9
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def next_model(self, model: np.ndarray, mean_update: np.ndarray) -> np.ndarray:
        """Apply the rule of the class; arguments and result have shape (parameters,)."""
        velocity: np.ndarray = self.momentum * self.state.get("velocity", np.zeros_like(model)) + mean_update
        self.state["velocity"] = velocity
        return model + self.learning_rate * velocity


@dataclass
class FedAdam:
    """Reddi et al. 2021, Algorithm 2 (FedAdam), without bias correction as in the paper."""

    learning_rate: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def next_model(self, model: np.ndarray, mean_update: np.ndarray) -> np.ndarray:
        """Apply the rule of the class; arguments and result have shape (parameters,)."""
        first = self.beta_1 * self.state.get("first", np.zeros_like(model)) + (1 - self.beta_1) * mean_update
        second = self.state.get("second", np.full_like(model, self.tau**2))
        second = self.beta_2 * second + (1 - self.beta_2) * mean_update**2
        self.state.update(first=first, second=second)
        return model + self.learning_rate * first / (np.sqrt(second) + self.tau)


_STRATEGIES: dict[str, type[FedAvg] | type[FedAvgM] | type[FedAdam]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
}


def strategy_of(chosen: Strategy) -> ServerStrategy:
    """Return the strategy that a study names; raise `InputError` for an unknown name or option."""
    strategy = _STRATEGIES.get(chosen.name)
    if strategy is None:
        raise InputError(
            f"study.toml: strategy.name {chosen.name!r} is unknown; choose one of {', '.join(_STRATEGIES)}"
        )
    known = sorted(one.name for one in fields(strategy) if one.name != "state")
    unknown = sorted(set(chosen.options) - set(known))
    if unknown or not all(isinstance(value, int | float) for value in chosen.options.values()):
        raise InputError(
            f"study.toml: strategy.options {unknown or sorted(chosen.options)} do not fit {chosen.name}; "
            f"it takes numbers for {', '.join(known)}"
        )
    return strategy(**{key: float(value) for key, value in chosen.options.items()})  # type: ignore[arg-type]
