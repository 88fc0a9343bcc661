"""`evomerge run`: check, start the stack, evolve, report."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge_cli.console import Console
from evomerge_cli.failure import OK, interrupt_on_signals
from evomerge_cli.folds import FOLDS, cost_of_folds, has_folds, search_on
from evomerge_cli.given import given_at
from evomerge_cli.memory import check_memory, machine_memory, scored_on_gpu
from evomerge_cli.preflight import (
    check_classes,
    check_code_allowed,
    check_gguf,
    check_licences,
    check_scorable,
    plan_in_words,
    survey_models,
)
from evomerge_cli.run_folder import RunFolder
from evomerge_cli.search_arguments import DEFAULT_OUT
from evomerge_cli.spec_source import Prepared, prepare
from evomerge_cli.stack.libraries import imported
from evomerge_cli.trackers import trackers, write_again
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import EvoMergeException, WorkFailed, error_from_info
from evomerge_models.survey import Survey

if TYPE_CHECKING:
    from evomerge.v1.selector_pb2 import Run
    from evomerge_cli.client import SelectorClient
    from evomerge_cli.run_session import Watched


def run(args: argparse.Namespace, console: Console) -> int:
    """Checks, starts the stack, evolves, and reports."""
    # The first thing of all: what is imported takes seconds, beside all that comes before the first score.
    with contextlib.nullcontext() if args.server else imported():
        code = _run(args, console)
    RunFolder(_out(args)).note_end()
    return code


def _out(args: argparse.Namespace) -> Path:
    return Path(args.out or DEFAULT_OUT).expanduser()


def _run(args: argparse.Namespace, console: Console) -> int:
    from evomerge_common.runtime.settings import Settings

    settings = Settings.from_env()
    prepared = prepare(args)
    if not args.server:  # a server has settings of its own
        check_code_allowed(prepared.suite, settings)
    for note in prepared.notes:
        console.say(f"note: {note}")
    sources = prepared.spec.sources
    if args.server:  # a folder that is not here may be there: then the server says what is wrong with it
        sources = tuple(source for source in sources if Path(source).is_dir())
    references = [ModelReference.parse(source) for source in sources]
    store = None if args.server else settings.model_store
    with survey_models(references, hub=not args.server, store=store) as survey:
        if prepared.spec.gguf_type:
            check_gguf(prepared.spec, survey, quantizer=not args.server)
        check_classes(survey)
        if not args.server:  # there the downloader does it, before it fetches anything
            _check_known(prepared, survey, console)
            _tell_offline(references, console)
            _check_memory(prepared, survey, settings.device, args.evaluators or 1, console)
        if survey.differ():
            for note in plan_in_words(prepared.spec, survey):
                console.say(f"note: {note}")
        check_scorable(prepared.spec, prepared.suite, survey)
    out = _out(args)
    options = Options(evaluators=args.evaluators, server=args.server, opened=args.open)
    return (execute_folds if has_folds(prepared) else execute)(prepared, out, console, options=options)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is executed, which is no part of what it is.

    Attributes:
        evaluators: processes that score; None: one a GPU, without one 1.
        server: host:port of a selector; None: a stack of its own.
        opened: show the live page in the browser.

    """

    evaluators: int | None = None
    server: str | None = None
    opened: bool = False


ALONE = Options()
"""On this machine, without a browser."""


def execute_folds(prepared: Prepared, out: Path, console: Console, *, options: Options = ALONE) -> int:
    """Searches on each fold, then as the spec says; the same command goes on where it was left off."""
    from evomerge_common.runtime.files import remove

    whole = search_on(prepared, 0)
    RunFolder(out).check(whole.digest)
    console.say(f"note: {cost_of_folds(prepared)}")
    for fold in range(1, prepared.suite.folds + 1):
        console.say(f"fold {fold} of {prepared.suite.folds}")
        place = out / FOLDS / str(fold)
        code = execute(search_on(prepared, fold), place, console, options=options)
        if code != OK:
            return code
        remove(place / "model")  # its recipe is in the log; only the run's own champion is handed back
    console.say("the run itself")
    return execute(whole, out, console, options=options)


def _check_memory(prepared: Prepared, survey: Survey, device: str, evaluators: int, console: Console) -> None:
    """Candidates are as large as the target, and lie in this machine's memory unless it has a GPU."""
    seen = survey.models.get(prepared.spec.target)
    if seen is None or scored_on_gpu(device):
        return
    if note := check_memory(seen.description.parameters, evaluators, machine_memory()):
        console.say(f"note: {note}")


def _tell_offline(references: Sequence[ModelReference], console: Console) -> None:
    from evomerge_models.hub import Hub

    if any(one.hub_ids for one in references) and Hub().is_offline:
        console.say("note: HF_HUB_OFFLINE is set: models of the hub are taken as they were when they were fetched last")


def _check_known(prepared: Prepared, survey: Survey, console: Console) -> None:
    """Licences, and which models the hub was too slow to tell of: the downloader looks at those."""
    if survey.unseen:
        console.say(
            f"note: nothing is known yet of {', '.join(survey.unseen)} (the hub is slow, or it is a GGUF file): the "
            "downloader looks before it fetches"
        )
    else:
        check_licences(survey, console, accepted=prepared.spec.accept_licence_conflict)


def execute(prepared: Prepared, out: Path, console: Console, *, options: Options = ALONE) -> int:
    """Runs a checked spec into a folder, from wherever an earlier command left off, and reports."""
    from evomerge_cli.finish import finish

    folder = RunFolder(out)
    if not (other_budget := folder.has_other_budget(prepared.request)):
        folder.check(prepared.digest)
    interrupt_on_signals()
    with folder.lock(), folder.logging(logging.DEBUG if console.verbose else logging.INFO) as log_file:
        console.log_hint = str(log_file)
        state = folder.claim(prepared.digest, prepared.spec)
        other_budget = other_budget and "run_id" in state  # not where another attempt begins
        folder.keep_suite(prepared.suite)
        if state["status"] == "finished" and not other_budget:
            console.say(f"the run in {folder.out} is finished: reporting again")
            result = finish(folder, console)
            write_again(prepared.log_to, folder, folder.events() if prepared.log_to else (), result, console)
            _push(prepared, folder, console)
            return OK
        if prepared.spec.push_to and not state.get("pushed"):
            from evomerge_cli.commands.push import check_free

            check_free(prepared.spec.push_to)
        if prepared.beginning and "run_id" not in state:
            console.say(f"note: {prepared.beginning}")
        if options.server:
            console.when_interrupted = "it goes on at the server; to watch it again"
        _evolve(prepared, folder, state, console, options, other_budget=other_budget)
        if other_budget and state.get("pushed"):
            again = shlex.join(["evomerge", "push", str(folder.out), prepared.spec.push_to, "--overwrite"])
            console.say(f"note: the champion of the smaller budget has been pushed; to push this one: {again}")
        _push(prepared, folder, console)
    return OK


def _push(prepared: Prepared, folder: RunFolder, console: Console) -> None:
    """Pushes the champion where the spec says so; once, whatever becomes of the repository afterwards."""
    from evomerge_cli.commands.push import push_champion

    repository, state = prepared.spec.push_to, folder.state()
    if not repository or state.get("pushed"):
        return
    try:
        done = push_champion(folder.out, repository, console)
    except EvoMergeException as error:
        again = shlex.join(["evomerge", "push", str(folder.out), repository])
        raise type(error)(
            f"the run is finished, but its champion is not pushed: {error}\nto push it: {again}"
        ) from error
    folder.save({**state, "pushed": {"url": done["url"], "commit": done["commit"]}})
    console.say(f"pushed to {done['url']}")


def _evolve(
    prepared: Prepared,
    folder: RunFolder,
    state: dict[str, Any],
    console: Console,
    options: Options,
    *,
    other_budget: bool,
) -> None:
    """Leaves the finished run's events, model, state and report in the folder."""
    from evomerge_cli.client import SelectorClient
    from evomerge_cli.coming import DownloadWatch
    from evomerge_cli.finish import Preparation, finish
    from evomerge_cli.progress import make_progress
    from evomerge_cli.run_session import Watched, watch_to_end
    from evomerge_common.domain.messages import RunCancelled, RunFailed, RunFinished
    from evomerge_common.runtime.settings import Settings

    began = time.monotonic()
    state["commands"] = [*state.get("commands", []), {"pid": os.getpid(), "given": given_at()}]
    with (
        trackers(prepared.log_to, folder, console) as tracked,
        _selector(folder, console, options) as (address, page, settings, check, leave),
    ):
        with SelectorClient(address, settings) as client:
            started = _started(client, prepared, state, other_budget=other_budget)
            folder.save(state)
            console.say(f"run {started.run_id}: {started.budget} evaluations of {len(prepared.spec.models)} models")
            _name_page(page, started.run_id, console, opened=options.opened)
            watched, preparation = Watched(started.run_id), Preparation(prepared.suite)
            try:
                watch_to_end(
                    client, started.run_id, make_progress(console), check=check, watched=watched,
                    coming=(lambda: None) if options.server else DownloadWatch(Settings.from_env().model_store),
                    search_ended=preparation.begin, follow=tracked.take,
                )  # fmt: skip
            except BaseException:
                with contextlib.suppress(OSError):  # what went wrong first is what is said
                    folder.write_events(watched.events)
                raise
            folder.write_events(watched.events)
        end = watched.view.end
        if isinstance(end, RunFailed):
            folder.save({**state, "status": "failed"})
            raise error_from_info(end.error.type, end.error.message)
        if isinstance(end, RunCancelled):
            folder.save({**state, "status": "cancelled"})
            raise WorkFailed(f"run {started.run_id} was cancelled: {end.reason or 'no reason given'}")
        if not isinstance(end, RunFinished):
            raise WorkFailed(f"run {started.run_id} ended without a word; see {folder.out / 'evomerge.log'}")
        _take_exports(watched, prepared, folder, console, move=options.server is None)
        folder.save({**state, "status": "finished", "wall_seconds": round(time.monotonic() - began, 3)})
        leave()
        preparation.wait()
        tracked.prove(finish(folder, console))


def _take_exports(watched: Watched, prepared: Prepared, folder: RunFolder, console: Console, *, move: bool) -> None:
    """Brings what was exported into the folder, and says what was not."""
    from evomerge_common.errors import NotFound

    view = watched.view
    for name, exported in view.exported.items():
        try:
            folder.take_model(exported.uri, move=move, name="model" if name == "hf" else name)
        except NotFound as error:
            if move:
                raise
            console.say(f"note: {error}")
    for failure in view.export_failures:
        console.say(f"note: the champion's export failed: {failure.error.message}")
    if prepared.spec.gguf_type and "gguf" not in view.exported:
        again = shlex.join(["evomerge", "export", str(folder.out / "model"), str(folder.out / "gguf"), "--gguf"])
        console.say(f"note: there is no GGUF file of the champion; to make one: {again}")


def _started(client: SelectorClient, prepared: Prepared, state: dict[str, Any], *, other_budget: bool) -> Run:
    """Starts the run, or lets it go on, and notes it in the folder's state."""
    if other_budget:
        started = client.continue_run(str(state["run_id"]), prepared.text)
        state |= {"spec_digest": prepared.digest, "spec": prepared.spec.to_dict(), "status": "started"}
    else:
        started = client.start_run(str(state["request_id"]), prepared.text, prepared.earlier)
        state["run_id"] = started.run_id
    return started


def _name_page(page: str, run_id: str, console: Console, *, opened: bool) -> None:
    from evomerge_cli.live_page import name_page

    if page:
        name_page(page, run_id, console, opened=opened)
    elif opened:
        console.say("note: where that server's live page is, is not known here: open its reporter's address, port 8080")


@contextlib.contextmanager
def _selector(folder: RunFolder, console: Console, options: Options) -> Iterator[tuple]:
    """(address, the live page's host and port, client settings, check, leave) of a server, or of a stack that lives as
    long as this context, or until nobody needs it any more and calls `leave`.
    """
    if options.server:
        from evomerge_cli.local_stack import page_beside
        from evomerge_common.runtime.settings import Settings

        yield options.server, page_beside(options.server), Settings.from_env(), lambda: None, lambda: None
        return
    from evomerge_cli.stack.embedded import Stack

    console.detail(f"starting nats-server and the services; logs in {folder.hidden / 'logs'}")
    with Stack(folder.hidden, evaluators=options.evaluators, awaited=("selector",)) as stack:
        console.detail(f"selector {stack.selector}")
        yield stack.selector, stack.addresses["page"], stack.settings, stack.check, stack.begin_stop


__all__ = ["Options", "execute", "execute_folds", "run"]
