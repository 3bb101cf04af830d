"""What takes the place of a trial where a space is only to say what it asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)


class StandIn(ABC):
    """Has the methods of optuna.Trial by which a space draws; `value` answers all of them."""

    def __init__(self) -> None:
        self.user_attrs = dict[str, Any]()

    @abstractmethod
    def value(self, name: str, distribution: BaseDistribution) -> Any:
        """The value of a hyperparameter."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self.value(name, FloatDistribution(low, high, log=log, step=step))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        return self.value(name, IntDistribution(low, high, log=log, step=step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.value(name, CategoricalDistribution(choices))
