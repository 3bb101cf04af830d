"""What trials are compared by: a metric, or a function of several, minimized or maximized."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal

from ali.errors import UserError
from ali.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MAXIMIZE = "maximize"  # user attribute of a trial: whether the higher of two objectives is better
Direction = Literal["minimize", "maximize"]

_FUNCTIONS: dict[str, Any] = {"min": min, "max": max, "abs": abs}
_FUNCTIONS |= {"log": math.log, "exp": math.exp, "sqrt": math.sqrt}
_ARGUMENTS = {"min": (2, 99), "max": (2, 99), "log": (1, 2)}  # others take one
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Load, ast.Call),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd),
)
_NAME = r"[\w./-]+"  # of a metric in MLflow


@dataclass(frozen=True)
class Objective:
    """What a sweep looks for.

    Attributes:
        name: the metric's, as it is logged.
        direction: None: maximize a metric that is better the higher it is, minimize others.
        formula: arithmetic of other metrics that gives it, as "val_error + 0.1 * sample_distance".
        function: computes it from the metrics of an epoch, by name. A full training
            (sweeps/best.py) lacks it and uses the experiment's own objective.
    """

    name: str
    direction: Direction | None = None
    formula: str | None = None
    function: Callable[[Mapping[str, float]], float] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(_NAME, self.name):
            raise UserError(
                f"--objective {self.name!r} is no metric's name: letters, digits and _ . / -; "
                'write arithmetic as "score = val_error + 0.1 * sample_distance"'
            )
        if self.formula is not None:
            _ = self.metrics  # raises if it is not arithmetic

    @classmethod
    def parse(
        cls, text: str, direction: Direction | None = None, known: Collection[Any] = ()
    ) -> Objective:
        """From "metric" or "name = formula"; a formula without a name is called "objective".

        `known`: metrics, whose names are no arithmetic ("val/loss"). Raises UserError if it is
        neither.
        """
        name, equals, formula = (part.strip() for part in text.partition("="))
        if equals:
            return cls(name, direction, formula)
        if name in known or re.fullmatch(r"[A-Za-z_][\w.]*", name):
            return cls(name, direction)
        return cls("objective", direction, name)

    @property
    def maximize(self) -> bool:
        known = self.name in HIGHER_IS_BETTER and not self.formula and not self.function
        return (self.direction or ("maximize" if known else "minimize")) == "maximize"

    @property
    def verb(self) -> Direction:
        return "maximize" if self.maximize else "minimize"

    @cached_property
    def metrics(self) -> frozenset[str]:
        """Names of the metrics that a formula is made of; without one, its own."""
        if self.formula is None:
            return frozenset([self.name])
        wrong = f"--objective: {self.formula!r} is no arithmetic of metrics"
        try:
            tree = ast.parse(self.formula, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"{wrong}: write it as in Python") from error
        nodes = list(ast.walk(tree))
        called = {id(n.func): ast.unparse(n.func) for n in nodes if isinstance(n, ast.Call)}
        if other := set(called.values()) - _FUNCTIONS.keys():
            raise UserError(f"{wrong}: {other.pop()} is none of {', '.join(_FUNCTIONS)}")
        for node in nodes:
            number = not isinstance(node, ast.Constant) or type(node.value) in (int, float)
            if not isinstance(node, _ARITHMETIC) or not number:
                raise UserError(f"{wrong}: it has {ast.unparse(node) or type(node).__name__}")
        for call in (n for n in nodes if isinstance(n, ast.Call)):
            least, most = _ARGUMENTS.get(called[id(call.func)], (1, 1))
            if not least <= len(call.args) <= most:
                wanted = f"{least} arguments or more" if least < most else "one argument"
                raise UserError(f"{wrong}: {ast.unparse(call)} needs {wanted}")
        names = {n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in called}
        if not names:
            raise UserError(f"{wrong}: it names none")
        return frozenset(names)

    def check(self, known: Collection[str] | None) -> None:
        """Raises UserError if an experiment with these metrics (None: not known) lacks one."""
        if known is None or self.function:
            return
        if lacking := sorted(self.metrics - set(known)):
            raise UserError(
                f"--objective: the experiment has no metric {lacking[0]!r}; it has "
                f"{', '.join(sorted(known))}"
            )
        if self.formula and self.name in known:
            raise UserError(f"--objective: {self.name} is a metric already: give another name")

    def add_to(self, metrics: dict[str, float], last: bool = False) -> None:
        """Adds its value to the metrics of an epoch, if it is not among them.

        An epoch without evaluation may lack metrics that it needs. Raises UserError if the
        `last` does.
        """
        if self.name in metrics or not (self.formula or self.function):
            return
        try:
            metrics[self.name] = float(self._value(metrics))
        except KeyError as lacking:
            if last:
                known = ", ".join(sorted(metrics))
                raise UserError(
                    f"objective {self.name} needs a metric {lacking}; there are {known}"
                ) from None
        except (ArithmeticError, ValueError):  # as log(0)
            metrics[self.name] = math.nan
        except TypeError:  # of a formula: the root of something negative is a complex number
            if self.function:
                raise
            metrics[self.name] = math.nan

    def _value(self, metrics: Mapping[str, float]) -> Any:
        if self.function:
            return self.function(metrics)
        values = {name: float(metrics[name]) for name in self.metrics}
        # Only arithmetic: `metrics` above has looked at every part of it.
        return eval(self._code, {"__builtins__": {}, **_FUNCTIONS}, values)

    @cached_property
    def _code(self) -> CodeType:
        """The formula, its numbers as floats: powers of integers might take forever."""
        tree = ast.parse(self.formula or "", mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, int):
                node.value = float(node.value)
        return compile(tree, "--objective", "eval")


def sign(trials: Iterable[FrozenTrial]) -> float:
    """What a sweep's objective is multiplied by so that less is better: 1, or −1 to maximize."""
    return -1.0 if any(MAXIMIZE in trial.user_attrs for trial in trials) else 1.0
