"""An entry of the bucket `runs` that is none must not keep a selector from starting."""

from __future__ import annotations

import pytest

from evomerge_selector.domain.summary import RunEntry


@pytest.mark.parametrize("data", [b"1", b"[]", b"{}", b"\xff", b"no json"])
def test_what_is_no_entry_is_no_active_run(data: bytes) -> None:
    assert RunEntry.from_bytes(data).state == "unreadable"


def test_an_entry_comes_back() -> None:
    entry = RunEntry(snapshot="file:///s")
    assert RunEntry.from_bytes(entry.to_bytes()) == entry
