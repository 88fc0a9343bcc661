"""The Hugging Face Hub, or a server that speaks as it does (HF_ENDPOINT).

What it says of a repository comes through huggingface_hub, imported on first use so that an idle service stays small;
the bytes come by `transfer`.
"""

from __future__ import annotations

import time
from pathlib import Path, PurePath

from evomerge_common.errors import ModelNotFound
from evomerge_common.runtime.files import remove
from evomerge_models.card import licence_file_among
from evomerge_models.files import Selection, select_files
from evomerge_models.hub.answers import client, commit_of, file_of, licence_said, patiently
from evomerge_models.hub.bandwidth import Bandwidth
from evomerge_models.hub.files import RemoteFile, RemoteModel
from evomerge_models.hub.part import PARTS
from evomerge_models.hub.transfer import Tell, Transfer
from evomerge_models.hub.wire import Wire

_PARTIAL, _BEHIND_THE_END = 206, 416
_READ_SECONDS, _SLOWEST = 30.0, 20_000
"""A look at a file ends after so long, and a second more for so many bytes: a hub that drips is none."""


class Hub:
    """Metadata and files of one hub.

    Args:
        endpoint: None: HF_ENDPOINT, else the public hub. The token comes from HF_TOKEN or the client's own login.
        limit: bytes a second of all downloads together; 0: none.

    """

    def __init__(self, endpoint: str | None = None, *, limit: int = 0) -> None:
        self._endpoint = endpoint
        self._bandwidth = Bandwidth(limit)

    @property
    def is_offline(self) -> bool:
        """Tells whether the client is set to ask no hub (HF_HUB_OFFLINE)."""
        return bool(client().constants.is_offline_mode())

    def model(self, repository: str, revision: str, file: str = "") -> RemoteModel:
        """Asks what a revision ("" = the default branch) is now, pinned to its commit; of a GGUF `file`, that alone.

        Raises:
            ModelNotFound: no such repository or revision, no access, or the client is set to offline.
            NotAModel: it has no config, weights or tokenizer.
            Unavailable: the hub does not answer, or not as a hub does.

        """
        api = client().HfApi(endpoint=self._endpoint, library_name="evomerge")
        name = f"{repository}@{revision}" if revision else repository

        def ask() -> tuple[str, dict[str, RemoteFile], str]:
            info = api.model_info(repository, revision=revision or None, files_metadata=True, timeout=30.0)
            files = {one.name: one for one in map(file_of, info.siblings or ())}
            return commit_of(info, name), files, licence_said(info)

        commit, files, licence = patiently(ask, name)
        selection = select_files(files, f"hub model {name}", file)
        chosen = tuple(files[one] for one in selection.files)
        return RemoteModel(repository, commit, selection, chosen, licence, licence_file_among(files))

    def dataset(self, repository: str, revision: str, file: str) -> RemoteModel:
        """Asks for one file of a dataset, pinned to the commit that a revision ("" = the default branch) is now.

        Raises:
            ModelNotFound: no such dataset, revision or file, or no access.
            Unavailable: as `model`.

        """
        api = client().HfApi(endpoint=self._endpoint, library_name="evomerge")
        name = f"datasets/{repository}@{revision}" if revision else f"datasets/{repository}"

        def ask() -> tuple[str, dict[str, RemoteFile]]:
            info = api.dataset_info(repository, revision=revision or None, files_metadata=True, timeout=30.0)
            return commit_of(info, name), {one.name: one for one in map(file_of, info.siblings or ())}

        commit, files = patiently(ask, name)
        if file not in files:
            alike = sorted(one for one in files if one.endswith(PurePath(file).suffix))
            raise ModelNotFound(f"{name} has no file {file}; it has {', '.join(alike[:10]) or 'none of that kind'}")
        return RemoteModel(repository, commit, Selection((file,), ()), (files[file],), kind="dataset")

    def read(self, model: RemoteModel, name: str, start: int, stop: int) -> bytes:
        """Reads bytes [start, stop) of a file, fewer where it ends; of a hub without ranges the rest is not read.

        Raises:
            ModelNotFound, Unavailable: as `model`.

        """
        utils = client().utils
        # What it is for, so that whoever counts requests can tell looking from fetching.
        headers = utils.build_hf_headers(library_name="evomerge", user_agent={"purpose": "look"})
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        url = client().hf_hub_url(model.repository, name, revision=model.commit, endpoint=self._endpoint)

        def ask() -> bytes:
            end = time.monotonic() + _READ_SECONDS + (stop - start) / _SLOWEST
            with utils.get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30.0) as answer:
                if answer.status_code == _BEHIND_THE_END:  # of an empty file every range is
                    return b""
                utils.hf_raise_for_status(answer)
                before = 0 if answer.status_code == _PARTIAL else start
                data = bytearray()
                for piece in answer.iter_bytes():
                    data += piece
                    if time.monotonic() > end:
                        raise TimeoutError
                    if len(data) >= before + stop - start:
                        break
            return bytes(data[before : before + stop - start])

        return patiently(ask, f"{model.repository}@{model.commit}")

    def fetch(self, model: RemoteModel, folder: Path, tell: Tell = lambda _: None) -> None:
        """Brings every selected file into `folder`, verified; what an earlier try left there is gone on with.

        Args:
            model: what to bring.
            folder: where the files go; one caller at a time.
            tell: called with how far it is, see `Tell`.

        Raises:
            UnsafeFile: a file is not what the hub's metadata says, fetched again too; it is removed.
            ModelNotFound, DiskFull, Unavailable: as they say; calling again goes on where this stopped.

        """
        self._transfer(model, folder, tell).run(model.files)

    def _transfer(self, model: RemoteModel, folder: Path, tell: Tell) -> Transfer:
        hub = client()
        if self.is_offline:
            raise ModelNotFound(f"{model.repository} is not in the model store, and HF_HUB_OFFLINE is set")
        constants = hub.constants
        endpoint = self._endpoint or constants.ENDPOINT
        headers = hub.utils.build_hf_headers(library_name="evomerge")
        return Transfer(
            Wire(headers, endpoint, float(constants.HF_HUB_DOWNLOAD_TIMEOUT)),
            f"{model.repository}@{model.commit}",
            lambda name: hub.hf_hub_url(
                model.repository, name, repo_type=model.kind, revision=model.commit, endpoint=self._endpoint
            ),
            folder,
            self._bandwidth,
            tell,
            model.bytes,
        )

    @staticmethod
    def finish(folder: Path) -> None:
        """Removes what is kept beside the files for going on."""
        remove(folder / PARTS)
