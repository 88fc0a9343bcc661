"""The Hugging Face Hub, or a server that speaks as it does (HF_ENDPOINT), through the real client.

The client is imported on first use, so that an idle service stays small.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_common.errors import DiskFull, EvoMergeException, ModelNotFound, Unavailable, UnsafeFile
from evomerge_models.files import CONFIG, Selection, read_json_object, select_files
from evomerge_models.hashes import git_blob_sha1, sha256_file
from evomerge_models.quantised import check_plain

COMMIT = re.compile(r"[0-9a-f]{40}")
ACCESS = (
    "check the name and revision; for a gated or private model accept its terms on the hub and set HF_TOKEN; "
    "for another hub set HF_ENDPOINT; or give a local folder"
)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it. `sha256` is set for LFS files, `blob` (git's SHA-1) for the others."""

    name: str
    size: int
    sha256: str = ""
    blob: str = ""


@dataclass(frozen=True)
class RemoteModel:
    """A repository at one commit, with the files that make its model."""

    repository: str
    commit: str
    selection: Selection
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        """Size of the selected files."""
        return sum(file.size for file in self.files)


class Hub:
    """Metadata and files of one hub.

    Args:
        endpoint: None: HF_ENDPOINT, else the public hub. The token comes from HF_TOKEN or the client's own login.

    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def model(self, repository: str, revision: str) -> RemoteModel:
        """What a revision ("" = the default branch) is now, pinned to its commit.

        Raises:
            ModelNotFound: no such repository or revision, no access, or the client is set to offline.
            NotAModel: it has no config, weights or tokenizer.
            Unavailable: the hub does not answer.

        """
        client = _client()
        name = f"{repository}@{revision}" if revision else repository
        with _errors(name):
            api = client.HfApi(endpoint=self._endpoint, library_name="evomerge")
            info = api.model_info(repository, revision=revision or None, files_metadata=True, timeout=30.0)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        selection = select_files(siblings, f"hub model {name}")
        commit = str(info.sha or "")
        if not COMMIT.fullmatch(commit):
            raise Unavailable(f"the hub names no commit for {name}, so it cannot be pinned; is HF_ENDPOINT a hub?")
        files = []
        for chosen in selection.files:
            sibling = siblings[chosen]
            lfs = sibling.lfs
            sha256 = str(lfs["sha256"] if lfs else "").removeprefix("sha256:")
            files.append(RemoteFile(chosen, int(sibling.size or 0), sha256, "" if lfs else str(sibling.blob_id or "")))
        return RemoteModel(repository, commit, selection, tuple(files))

    def fetch(self, model: RemoteModel, folder: Path) -> None:
        """Brings every selected file into `folder` and verifies it; what an earlier try completed is kept.

        Raises:
            QuantisedModel: the config, which comes first, says that the rest is of no use.
            UnsafeFile: a file is not what the hub's metadata says; it is removed.
            ModelNotFound, DiskFull, Unavailable: as they say; calling again goes on with the missing files.

        """
        client = _client()
        for leftover in folder.rglob("*.incomplete"):  # of a killed download: the client never goes on with it
            leftover.unlink(missing_ok=True)

        def one(file: RemoteFile) -> None:
            with _errors(f"{model.repository}@{model.commit}"):
                client.hf_hub_download(
                    model.repository,
                    file.name,
                    revision=model.commit,
                    local_dir=folder,
                    endpoint=self._endpoint,
                    library_name="evomerge",
                )
            verify(file, folder / file.name, model.repository)

        rest = [file for file in model.files if file.name != CONFIG]
        if len(rest) < len(model.files):
            one(next(file for file in model.files if file.name == CONFIG))
            check_plain(read_json_object(folder / CONFIG), {}, model.repository)
        with ThreadPoolExecutor(4, "download") as pool:
            for _ in pool.map(one, rest):
                pass

    @staticmethod
    def finish(folder: Path) -> None:
        """Removes what the client keeps beside the files for going on."""
        shutil.rmtree(folder / ".cache", ignore_errors=True)


def _client() -> Any:
    """huggingface_hub, told to be quiet: its lines hold whole URLs, and that of a private file on a CDN is signed,
    which makes it as good as a password.
    """
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    disable_progress_bars()
    set_verbosity_error()
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return huggingface_hub


def verify(file: RemoteFile, path: Path, repository: str) -> None:
    """Compares size and hash with the hub's metadata; a file that differs is removed.

    Raises:
        UnsafeFile: it differs.

    """
    size = path.stat().st_size
    wrong = ""
    if file.sha256 and (found := sha256_file(path)) != file.sha256:
        wrong = f"its SHA-256 is {found}, the hub says {file.sha256}"
    elif not file.sha256 and file.blob and (found := git_blob_sha1(path)) != file.blob:
        wrong = f"its git hash is {found}, the hub says {file.blob}"
    elif not (file.sha256 or file.blob) and size != file.size:
        wrong = f"it has {size} bytes, the hub says {file.size}"
    if wrong:
        path.unlink()
        raise UnsafeFile(f"{file.name} of {repository} is not the file that was asked for: {wrong}; download it again")


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """The client's errors as ours. None of them carries the token: the client keeps it in request headers."""
    from huggingface_hub import errors

    try:
        yield
    except EvoMergeException:
        raise
    except errors.HFValidationError as error:
        raise ModelNotFound(
            f"{name!r} is no hub id ({error}); give org/name, perhaps @revision, or a folder"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelNotFound(
            f"{name} is not in the model store and HF_HUB_OFFLINE is set; unset it or give a local folder"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"the hub has no such revision: {name}; {ACCESS}") from error
    except errors.GatedRepoError as error:
        raise ModelNotFound(f"{name} is gated; {ACCESS}") from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.DisabledRepoError) as error:
        raise ModelNotFound(f"the hub has no model {name}, or does not show it to you; {ACCESS}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise ModelNotFound(f"the hub refuses {name} (HTTP {status}); {ACCESS}") from error
        raise Unavailable(f"the hub answers HTTP {status} for {name}; trying again may help") from error
    except (errors.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFull(f"the disk filled up while {name} was downloaded; free some room and try again") from error
        raise Unavailable(
            f"the hub does not answer for {name} ({type(error).__name__}: {error}); check the network, HF_ENDPOINT, or "
            "give a local folder"
        ) from error
