"""The journal file: one of Optuna's operations per line, each checked before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import create_trial

from ali.config import Config
from ali.errors import UserError
from ali.files import is_full
from sweeps.engine.confirmation import CONFIRMS, CONTROL
from sweeps.engine.endings import END_REASON, END_STATE, RETRIES, EndState
from sweeps.engine.objective import MAXIMIZE
from sweeps.engine.space import PAPER_VALUES

CONFIG = "config"  # user attribute of a trial: its whole configuration, plain JSON types
DATA = "data_fingerprint"  # user attribute of a study: of the data that all its trials have
SPACE = "space"  # user attribute of a study: what its search draws from (`Space.to_dict`)
OBJECTIVE = "objective"  # user attribute of a study: name of the metric that is its value
# More of them, for people who look at it: the sweep's script, and what a trial runs
SCRIPT, EXPERIMENT = "script", "experiment"
ALI = "AliExperiment"  # the experiment of all sweeps but one's own
WAY_ON = "restore it from a copy, or start a sweep with another --name"

_NUMBER, _NAMES = (int, float), {"op_code": int, "worker_id": str}
# Further keys of an operation's line, by Optuna's number of the operation.
_FIELDS: dict[int, dict[str, type | tuple[type, ...]]] = {
    0: {"study_name": str, "directions": list},
    1: {"study_id": int},
    2: {"study_id": int, "user_attr": dict},
    3: {"study_id": int, "system_attr": dict},
    4: {"study_id": int},
    5: {"param_name": str, "param_value_internal": _NUMBER, "distribution": str},
    6: {"state": int, "values": (list, type(None))},
    7: {"step": int, "intermediate_value": _NUMBER},
    8: {"user_attr": dict},
    9: {"system_attr": dict},
    10: {},
}
_CREATE_TRIAL, _SET_PARAMETER, _OF_TRIALS = 4, 5, range(5, 10)
_ATTRIBUTES = {END_REASON: str, CONFIRMS: int, RETRIES: int, CONTROL: bool, PAPER_VALUES: list}
_ATTRIBUTES |= {DATA: str, SPACE: dict, OBJECTIVE: str, MAXIMIZE: bool}
_ATTRIBUTES |= {SCRIPT: str, EXPERIMENT: str}


def open_journal(path: Path) -> JournalStorage:
    """The operations of a file. Raises UserError, naming the line, if one is invalid."""
    file = _CheckedFile(path)
    try:
        lines = path.read_bytes().count(b"\n")  # before it is read: a driver may be adding some
        storage = JournalStorage(file)
        if file.line < lines:  # Optuna passes over a last line that is not JSON
            raise ValueError
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): {WAY_ON}") from error
    except Exception as error:  # of whatever kind Optuna runs into
        if (garbage := _not_json(path)) is not None:
            raise UserError(f"{path}, line {garbage}: not JSON; {WAY_ON}") from error
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise UserError(f"{path}, line {file.line}: {reason}; {WAY_ON}") from error
    return storage


class _NoLock(JournalFileOpenLock):
    """The sweep's own lock has been taken: one process alone writes to the journal.

    Optuna's locks are links, which some file systems do not have (FAT, Windows shares).
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class _CheckedFile(JournalFileBackend):
    """A journal of whole lines: one that did not fit on the disk is removed, since the next
    would be appended to it and no reader would get past it."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _NoLock(str(path)))
        self._path = path
        self.line = 0  # the last that was read
        self._trials = 0  # created up to there

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for line, log in enumerate(super().read_logs(log_number_from), log_number_from + 1):
            self.line = line
            _check(log, self._trials)
            self._trials += log["op_code"] == _CREATE_TRIAL
            yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        size = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError as error:
            os.truncate(self._path, size)  # this process alone writes to it
            way_on = "free space, then" if is_full(error) else "when it can be written,"
            raise UserError(
                f"cannot write {self._path}: {error.strerror}; {way_on} resume the sweep"
            ) from error


def _check(log: Any, trials: int) -> None:
    """Raises ValueError if it is no operation on a study with so many trials."""
    if not isinstance(log, dict) or not isinstance(log.get("op_code"), int):
        raise ValueError("not an operation of Optuna's")
    operation = log["op_code"]
    if operation not in _FIELDS:
        raise ValueError(f"operation {operation} is unknown: a newer Optuna wrote it, update it")
    fields = _NAMES | _FIELDS[operation]
    if operation in _OF_TRIALS:
        fields["trial_id"] = int
    for name, kind in fields.items():
        if not isinstance(log.get(name), kind) or isinstance(log[name], bool):
            raise ValueError(f"{name} has no value of its type")
    if operation in _OF_TRIALS and not 0 <= log["trial_id"] < trials:
        raise ValueError(f"trial {log['trial_id']} was never created, so lines are missing")
    if operation == _SET_PARAMETER:  # a value outside its distribution would be noticed too late
        distribution = json_to_distribution(log["distribution"])
        value = distribution.to_external_repr(log["param_value_internal"])
        create_trial(value=0, params={"": value}, distributions={"": distribution})
    values = log.get("values")
    if values is not None and [type(value) in _NUMBER for value in values] != [True]:
        raise ValueError("values are not one number")
    _check_attributes({**log.get("user_attr", {}), **log.get("user_attrs", {})})


def _check_attributes(attributes: dict[str, Any]) -> None:
    for name, kind in _ATTRIBUTES.items():
        if name in attributes and type(attributes[name]) is not kind:
            raise ValueError(f"{name} has no value of its type")
    if END_STATE in attributes:
        EndState(attributes[END_STATE])
    if CONFIG in attributes:
        try:
            Config.from_dict(attributes[CONFIG])
        except UserError as error:
            raise ValueError(str(error)) from error


def _not_json(path: Path) -> int | None:
    """Number of the first whole line that is not JSON."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return number
    return None
