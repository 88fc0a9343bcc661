"""What the client of the hub's API says, and what its errors mean here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from evomerge_common.domain.licence_names import licence_of_metadata
from evomerge_common.errors import EvoMergeException, ModelNotFound, Unavailable
from evomerge_models.hub.files import ACCESS, COMMIT, SHA256, RemoteFile
from evomerge_models.hub.patience import RETRIED, Broken, Patience, pause, retry_after

log = logging.getLogger(__name__)

T = TypeVar("T")
TRIES = 3


def client() -> Any:
    """Imports huggingface_hub, told to be quiet.

    Its lines hold whole URLs, and that of a private file on a CDN is signed, which makes it as good as a password.
    """
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    disable_progress_bars()
    set_verbosity_error()
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return huggingface_hub


def patiently(ask: Callable[[], T], name: str) -> T:
    """Asks the hub's API through its client, again when it fails in a passing way.

    Args:
        ask: calls the client, and reads what it answers; whatever it raises, the answer was wrong.
        name: the model, for errors.

    Raises:
        ModelNotFound: no such repository or revision, no access, or the client is set to offline.
        Unavailable: the hub does not answer, or not as a hub does.

    """
    patience = Patience(name, TRIES, lambda note: log.warning("%s: %s", name, note), pause)
    while True:
        try:
            return ask()
        except EvoMergeException:
            raise
        except Exception as error:
            meaning = _meaning(error, name)
            if isinstance(meaning, EvoMergeException):
                raise meaning from error
        patience.failed(meaning)


def _meaning(error: Exception, name: str) -> EvoMergeException | Broken:
    """The client's error as ours. None of them carries the token: the client keeps it in request headers."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return ModelNotFound(f"{name!r} is no hub id ({error}); give org/name, perhaps @revision, or a folder")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelNotFound(
            f"{name} is not in the model store and HF_HUB_OFFLINE is set; unset it or give a local folder"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"the hub has no such revision: {name}; {ACCESS}")
    if isinstance(error, errors.GatedRepoError):
        return ModelNotFound(f"{name} is gated; {ACCESS}")
    if isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError | errors.DisabledRepoError):
        return ModelNotFound(f"the hub has no model {name}, or does not show it to you; {ACCESS}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in {401, 403}:
            return ModelNotFound(f"the hub refuses {name} (HTTP {status}); {ACCESS}")
        if status in RETRIED:
            return Broken(f"the hub answers HTTP {status}", retry_after(error.response.headers))
        return Unavailable(f"the hub answers HTTP {status} for {name}; is HF_ENDPOINT a hub? trying again may help")
    if isinstance(error, errors.HTTPError | OSError):
        return Broken(f"the hub does not answer ({type(error).__name__})")
    return Broken(f"the hub's answer is not what a hub says ({type(error).__name__}); is HF_ENDPOINT a hub?")


def commit_of(info: Any, name: str) -> str:
    """Reads the commit of a repository.

    Raises:
        Unavailable: there is none.

    """
    commit = str(info.sha or "")
    if not COMMIT.fullmatch(commit):
        raise Unavailable(f"the hub names no commit for {name}, so it cannot be pinned; is HF_ENDPOINT a hub?")
    return commit


def licence_said(info: Any) -> str:
    """Reads the licence that a repository's card or tags name, as `licence_names` writes it; "" for none."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    return licence_of_metadata(card, info.tags or ())


def file_of(sibling: Any) -> RemoteFile:
    """Reads a file of a repository.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is not what a hub says.

    """
    sha256 = str(sibling.lfs["sha256"]).removeprefix("sha256:") if sibling.lfs else ""
    blob = "" if sibling.lfs else str(sibling.blob_id or "")
    size = int(sibling.size or 0)
    if not isinstance(sibling.rfilename, str) or size < 0:
        raise ValueError("a file without name or size")
    if (sha256 and not SHA256.fullmatch(sha256)) or (blob and not COMMIT.fullmatch(blob)):
        raise ValueError("a hash that is none")
    return RemoteFile(sibling.rfilename, size, sha256, blob)
