"""When vLLM scores; what it answers is held to `tests/contract/test_scoring_backend.py`."""

from __future__ import annotations

import sys

import pytest

from evomerge_common.errors import Unavailable
from evomerge_scoring.vllm_backend import use_vllm
from helpers import fake_vllm


def test_it_is_used_only_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not use_vllm("auto", "cpu")
    assert not use_vllm("torch", "cuda")
    with pytest.raises(Unavailable, match="vLLM"):
        use_vllm("vllm", "cpu")
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    assert [use_vllm(backend, "cuda") for backend in ("auto", "vllm", "torch")] == [True, True, False]
    assert [use_vllm(backend, "cpu") for backend in ("auto", "vllm", "torch")] == [False, True, False]
    with pytest.raises(Unavailable, match="built for"):
        use_vllm("vllm", "mps")
