"""`evomerge push`: a run's champion, or a model's folder, to a repository of the hub."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from evomerge_cli.byte_progress import bytes_bar, human
from evomerge_cli.console import Console
from evomerge_cli.publication import Publication, publication_at_server, publication_of
from evomerge_common.errors import InvalidInput
from evomerge_models.hub.counted import Progress
from evomerge_models.hub.push import Publisher
from evomerge_models.hub.push_plan import LocalFile, PushPlan

MESSAGE = "Upload a model made by EvoMerge"


def run(args: argparse.Namespace, console: Console) -> int:
    """Pushes, or tells what would be pushed."""
    publisher = Publisher()
    path = Path(args.model).expanduser()
    if args.model.startswith("run-") and not path.exists():
        publication = publication_at_server(args.model, args.server, publisher.metadata)
    else:
        publication = publication_of(path, publisher.metadata)
    pushes = _pushes(publication, args.repository, args.gguf_repo)
    plans = [publisher.plan(repository, files, args.revision) for repository, files in pushes]
    for note in publication.notes:
        console.say(f"note: {note}")
    if args.dry_run:
        facts = [_facts(plan, publication, public=args.public) for plan in plans]
        if not console.data({"dry_run": True, "pushes": facts, "notes": list(publication.notes)}):
            for plan in plans:
                _show(plan, publication, console, public=args.public)
        return 0
    for plan in plans:
        publisher.check_access(plan.repository)
        plan.check(public=args.public, overwrite=args.overwrite)
    done = []
    for plan in plans:
        done.append(_facts(plan, publication, public=args.public) | send(
            publisher, plan, console, public=args.public, message=args.message
        ))  # fmt: skip
    if not console.data({"pushes": done, "notes": list(publication.notes)}):
        for one in done:
            console.out(
                f"{one['url']} at {one['commit'][:12]}: {len(one['files'])} files, {human(one['sent_bytes'])} sent"
            )
    return 0


def check_free(repository: str) -> None:
    """Makes sure, before a run starts, that its champion can be pushed at its end.

    Raises:
        AccessDenied, InvalidInput, Unavailable: no token, no right to write, or the name is taken.

    """
    publisher = Publisher()
    publisher.check_access(repository)
    publisher.plan(repository, ()).check(public=False, overwrite=False)


def push_champion(folder: Path, repository: str, console: Console) -> dict[str, Any]:
    """Pushes a finished run's champion, with its GGUF file, to a private repository.

    Raises:
        InvalidInput, Unavailable: see `Publisher`.

    """
    publisher = Publisher()
    publication = publication_of(folder, publisher.metadata)
    for note in publication.notes:
        console.say(f"note: {note}")
    publisher.check_access(repository)
    plan = publisher.plan(repository, publication.together())
    plan.check(public=False, overwrite=False)
    return send(publisher, plan, console, public=False)


def send(publisher: Publisher, plan: PushPlan, console: Console, *, public: bool, message: str = "") -> dict[str, Any]:
    """Pushes under a bar of bytes; returns where it is now."""
    console.say(f"pushing to {plan.repository}: {human(plan.bytes)} of {_count(plan)} files")
    bar: list[Progress] = []
    with ExitStack() as stack:

        def progress(done: int, total: int) -> None:
            if not bar:  # where the client shows bars of its own, there is none of ours
                bar.append(stack.enter_context(bytes_bar(console, f"pushing to {plan.repository}")))
            bar[0](done, total)

        commit = publisher.push(plan, public=public, message=message or MESSAGE, progress=progress)
    return {"url": publisher.url(plan.repository), "commit": commit, "sent_bytes": plan.bytes}


def _pushes(publication: Publication, repository: str, gguf: str | None) -> list[tuple[str, tuple[LocalFile, ...]]]:
    """Repository → files: one, or two where the GGUF files get their own."""
    if gguf is None:
        return [(repository, publication.together() if publication.model else publication.gguf_alone(""))]
    if not publication.gguf:
        raise InvalidInput("--gguf-repo: there is no GGUF file; `evomerge export … --gguf` makes one")
    if not publication.model:
        raise InvalidInput("--gguf-repo is for GGUF files beside a model; here are GGUF files alone")
    if gguf.casefold() == repository.casefold():
        raise InvalidInput(f"--gguf-repo: {gguf} is the model's own repository; leave it out to have both in one")
    return [(repository, publication.model), (gguf or f"{repository}-GGUF", publication.gguf_alone(repository))]


def _count(plan: PushPlan) -> int:
    return len(plan.new) + len(plan.changed)


def _facts(plan: PushPlan, publication: Publication, *, public: bool) -> dict[str, Any]:
    """A push as plain data."""
    there = plan.private is not None
    states = {"new": plan.new, "changed": plan.changed, "there": plan.same}
    files = [{"name": file.name, "bytes": file.size, "state": state} for state, some in states.items() for file in some]
    return {
        "repository": plan.repository,
        "exists": there,
        "visibility": ("private" if plan.private else "public") if there else ("public" if public else "private"),
        "branch": plan.branch or "main",
        "licence": str(publication.card.get("license_name") or publication.card.get("license") or ""),
        "bytes": plan.bytes,
        "files": sorted(files, key=lambda one: str(one["name"])),
        "others": list(plan.others),
    }  # fmt: skip


def _show(plan: PushPlan, publication: Publication, console: Console, *, public: bool) -> None:
    facts = _facts(plan, publication, public=public)
    state = "there already" if facts["exists"] else "new"
    rows = [[one["name"], human(one["bytes"]), one["state"]] for one in facts["files"]]
    rows += [[name, "-", "other: --overwrite removes it"] for name in facts["others"]]
    title = f"{facts['repository']} ({facts['visibility']}, {state}, branch {facts['branch']})"
    console.table(["file", "size", "on the hub"], rows, title=title)
    console.out(f"licence: {facts['licence'] or 'none is named'}; {human(facts['bytes'])} to send; nothing was sent")
