"""The way out: a folder's files to a repository of the hub, in one commit, through the real client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from evomerge_common.errors import AccessDenied, EvoMergeException, InvalidInput, Unavailable
from evomerge_models.hub.answers import client, file_of
from evomerge_models.hub.counted import Counter, Progress, additions
from evomerge_models.hub.push_plan import LocalFile, PushPlan, check_name

NO_TOKEN = "push needs a token that may write: set HF_TOKEN, or log in with `hf auth login`"  # noqa: S105 - no token, but words about one
_THE_HUBS_OWN = frozenset({".gitattributes"})


class Publisher:
    """Writes to one hub.

    Args:
        endpoint: None: HF_ENDPOINT, else the public hub. The token comes from HF_TOKEN or the client's own login.

    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._client = client()
        self._api = self._client.HfApi(endpoint=endpoint, library_name="evomerge")

    def check_access(self, repository: str) -> None:
        """Asks the hub whose token this is, and whether it may write there; nothing is made.

        Raises:
            AccessDenied: no token, an invalid one, one that only reads, or a name that belongs to others.
            InvalidInput: no name of a repository.
            Unavailable: the hub does not answer.

        """
        check_name(repository)
        if not self._client.get_token():
            raise AccessDenied(f"there is no token for the hub; {NO_TOKEN}")
        with _errors(repository):
            who = self._api.whoami()
        role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise AccessDenied(f"the token of {who.get('name')} may only read; {NO_TOKEN}")
        spaces = [str(who.get("name")), *(str(one.get("name")) for one in who.get("orgs") or ())]
        owner = repository.partition("/")[0]
        if owner not in spaces:
            raise AccessDenied(
                f"{owner} is neither you nor one of your organisations ({', '.join(spaces)}); push to one of these, or "
                "use another token"
            )

    def plan(self, repository: str, files: Sequence[LocalFile], branch: str = "") -> PushPlan:
        """Compares files with what a repository holds.

        Raises:
            AccessDenied, InvalidInput, Unavailable: see `check_access`.

        """
        check_name(repository)
        errors = self._client.errors
        commit, info = "", None
        with _errors(repository):
            try:
                info = self._api.model_info(repository, revision=branch or None, files_metadata=True)
                commit = str(info.sha or "")
            except errors.RevisionNotFoundError:  # a branch begins with what the default one holds
                info = self._api.model_info(repository, files_metadata=True)
            except errors.RepositoryNotFoundError:
                return PushPlan(repository, branch, "", None, tuple(files))
            found = [file_of(one) for one in info.siblings or ()]
        there = {one.name: one for one in found if one.name not in _THE_HUBS_OWN}
        same = [file for file in files if file.name in there and file.is_the_same(there[file.name])]
        return PushPlan(
            repository,
            branch,
            commit,
            bool(info.private),
            tuple(file for file in files if file.name not in there),
            tuple(file for file in files if file.name in there and file not in same),
            tuple(same),
            tuple(sorted(set(there) - {file.name for file in files})),
        )

    def push(self, plan: PushPlan, *, public: bool, message: str, progress: Progress | None = None) -> str:
        """Makes the repository and branch if they are missing, sends what is not there, and commits it all at once.

        A large file that an earlier, interrupted push has sent is found by its hash and is not sent again. `progress`
        is called from the client's threads; never where the hub takes files by Xet.

        Returns:
            The commit's id: of the branch as it was, if nothing is to be done.

        Raises:
            AccessDenied, InvalidInput, Unavailable: see `check_access`; what was sent so far is of use to the next try.

        """
        with _errors(plan.repository):
            if plan.private is None:
                self._api.create_repo(plan.repository, private=not public, exist_ok=True)
            if plan.branch and not plan.commit:
                self._api.create_branch(plan.repository, branch=plan.branch, exist_ok=True)
            files = (*plan.new, *plan.changed)
            if not files and not plan.others:
                return plan.commit
            counter = Counter(sum(file.size for file in files), progress)
            deletions = [self._client.CommitOperationDelete(name, is_folder=False) for name in plan.others]

            def commit() -> str:
                done = self._api.create_commit(
                    plan.repository,
                    [*deletions, *additions(self._client, files, counter)],
                    commit_message=message,
                    revision=plan.branch or None,
                    parent_commit=plan.commit or None,
                )
                return str(done.oid)

            return self._by_xet(commit) if self._speaks_xet(plan) else self._by_lfs(commit, counter)

    def metadata(self, repository: str, revision: str = "") -> Mapping[str, Any]:
        """Reads the metadata of a model's card as the hub keeps it; empty where it shows none."""
        errors = self._client.errors
        try:
            info = self._api.model_info(repository, revision=revision or None)
        except (errors.HfHubHTTPError, errors.HTTPError, errors.OfflineModeIsEnabled, OSError, ValueError):
            return {}
        return dict(info.card_data.to_dict()) if info.card_data else {}

    def url(self, repository: str) -> str:
        """Returns the page of a repository."""
        return f"{self._api.endpoint}/{repository}"

    def _speaks_xet(self, plan: PushPlan) -> bool:
        """Whether the hub takes large files by Xet; the client takes for granted that each does."""
        if self._client.constants.HF_HUB_DISABLE_XET:
            return False
        path = f"/api/models/{plan.repository}/xet-write-token/{quote(plan.branch or 'main', safe='')}"
        headers = self._client.utils.build_hf_headers()
        answer = self._client.utils.get_session().get(self._api.endpoint + path, headers=headers)
        return bool(answer.status_code == 200)

    def _by_xet(self, commit: Callable[[], str]) -> str:
        """Commits under the client's own bars, on a terminal: there is no other word of how far Xet is."""
        self._client.utils.enable_progress_bars()
        try:
            return commit()
        finally:
            self._client.utils.disable_progress_bars()

    def _by_lfs(self, commit: Callable[[], str], counter: Counter) -> str:
        constants = self._client.constants
        before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
        try:
            with ThreadPoolExecutor(1, "push") as pool:
                done = pool.submit(commit)
                try:
                    return done.result()
                except BaseException:
                    counter.stop()  # the client's threads would send their files to the end
                    raise
        finally:
            constants.HF_HUB_DISABLE_XET = before


@contextmanager
def _errors(repository: str) -> Iterator[None]:
    """The client's errors as ours. Its own texts hold URLs, which are signed where a file is sent: none is repeated."""
    from huggingface_hub import errors

    try:
        yield
    except EvoMergeException:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise Unavailable("HF_HUB_OFFLINE is set, and a push needs the hub: unset it") from error
    except errors.LocalTokenNotFoundError as error:
        raise AccessDenied(f"there is no token for the hub; {NO_TOKEN}") from error
    except errors.HFValidationError as error:
        raise InvalidInput(f"{repository!r} is no name of a repository: give org/name") from error
    except errors.HfHubHTTPError as error:
        raise _of_status(repository, error) from error
    except ValueError as error:  # the card's metadata, or a large file that the hub does not take
        raise InvalidInput(f"the hub does not take what is pushed to {repository}: {error}") from error
    except RuntimeError as error:  # around the error of one file
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError):
            raise _of_status(repository, cause) from error
        raise _unavailable(repository, cause or error) from error
    except (errors.HTTPError, OSError) as error:
        raise _unavailable(repository, error) from error


def _of_status(repository: str, error: Any) -> EvoMergeException:
    status = error.response.status_code
    if status == 401:
        return AccessDenied(f"the hub does not take the token (HTTP 401) for {repository}; {NO_TOKEN}")
    if status in {403, 404}:
        return AccessDenied(
            f"the token may not write to {repository} (HTTP {status}): use one with write access to it, or push to a "
            "name of your own"
        )
    if status in {409, 412}:
        return Unavailable(f"{repository} was changed by somebody else meanwhile (HTTP {status}): look, and push again")
    return Unavailable(f"the hub answers HTTP {status} for {repository}; the same command goes on from what was sent")


def _unavailable(repository: str, error: BaseException) -> EvoMergeException:
    return Unavailable(
        f"the hub does not answer for {repository} ({type(error).__name__}); check the network and HF_ENDPOINT: the "
        "same command goes on from what was sent"
    )
