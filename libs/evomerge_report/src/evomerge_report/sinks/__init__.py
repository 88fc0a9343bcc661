"""Trackers that teams look at already: what a run's records are written to, each by its own library.

The libraries are extras (`pip install 'evomerge-report[mlflow]'`), and are imported in a process of their own alone
(`python -m evomerge_report.sinks`): they take seconds to import, start threads, and write to standard output.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from evomerge_common.errors import InvalidInput, did_you_mean
from evomerge_report.records import Record


class Sink(Protocol):
    """An open tracker, of one run. What it raises is noted, and it is given nothing more."""

    def write(self, records: Sequence[Record], seen: Sequence[Record]) -> None:
        """Writes records; they are safe when it returns.

        Args:
            records: in order; none was written before.
            seen: every record of the run up to these, for what a tracker can only be given as a whole.

        """
        ...

    def close(self) -> None:
        """Called once, when no record follows from this command; the run may go on in another one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is written to.

    Attributes:
        name: what the user calls the place; "" for what the library itself is set to.
        folder: the run's output folder.
        run: the record of the run.
        step: of the first record that will be written; what the tracker has from there on is of an unfinished write.

    """

    name: str
    folder: Path
    run: Record
    step: int


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One tracker: `module` has `connect(place: Place) -> Sink`; `package` is its library; `place` what a name is."""

    module: str
    package: str
    place: str


KINDS: Mapping[str, Kind] = {
    "mlflow": Kind(module="to_mlflow", package="mlflow", place="a tracking URI"),
    "tensorboard": Kind(module="to_tensorboard", package="tensorboard", place="a folder"),
    "trackio": Kind(module="to_trackio", package="trackio", place="a project"),
    "wandb": Kind(module="to_wandb", package="wandb", place="a project"),
}
_SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL", re.IGNORECASE)
_USER_OF_URI = re.compile(r"(?<=://)[^/@\s'\"]+@")


def check_asked(asked: Sequence[str]) -> None:
    """Refuses what cannot be written to, before anything has started.

    Args:
        asked: each NAME or NAME=PLACE.

    Raises:
        InvalidInput: no such tracker, its library is not installed, or a URI holds a password.

    """
    for one in asked:
        name, _, place = one.partition("=")
        if name not in KINDS:
            raise InvalidInput(f"there is no tracker {without_secrets(name)!r}; {did_you_mean(name, KINDS)}")
        if place and urlsplit(place).password:
            raise InvalidInput(
                f"the address for {name} holds a password, which would show in lists of processes and in logs: put it "
                f"into the environment, as {name} reads it ({_VARIABLES.get(name, 'see its documentation')})"
            )
        if importlib.util.find_spec(KINDS[name].package) is None:
            raise InvalidInput(f"{name} is not installed here: pip install 'evomerge-report[{name}]'")
    names = [one.partition("=")[0] for one in asked]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InvalidInput(f"{twice} is named twice; a run is written to one place of each tracker")


_VARIABLES = {
    "mlflow": "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "trackio": "TRACKIO_SERVER_URL and TRACKIO_WRITE_TOKEN",
    "wandb": "WANDB_API_KEY and WANDB_BASE_URL",
}


def connect(name: str, place: Place) -> Sink:
    """Opens a tracker; takes seconds, since it imports the library."""
    module = importlib.import_module(f"{__name__}.{KINDS[name].module}")
    opened: Sink = module.connect(place)
    return opened


def without_secrets(text: str) -> str:
    """Returns a text without the credentials of URIs, and without what variables of that kind hold."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 6:
            text = text.replace(value, "…")
    return _USER_OF_URI.sub("…@", text)
