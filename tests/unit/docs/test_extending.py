"""The examples of docs/extending.md work: each is written to a module of its own and used, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

USES = {
    "medians": """
        import torch
        from evomerge_merging.methods import method
        tensors = [torch.tensor(values) for values in ([1.0, 9.0], [2.0, 7.0], [5.0, 8.0])]
        found = method("median").function(tensors)
        assert found.tolist() == [2.0, 8.0]
    """,
    "number": """
        from types import SimpleNamespace
        task = SimpleNamespace(options={"within": 4.0})
        said = [example.KIND.score(task, {"answer": 3}, [text]) for text in (" 3", "4", "9", "three")]
        assert said == [1.0, 0.75, 0.0, 0.0]
    """,
    "hill_climb": """
        from random import Random
        from evomerge_common.domain.spec import SearchSpec
        from evomerge_selector.domain.strategy import ScoredCandidate
        from evomerge_common.domain.search_space import SearchSpace
        from evomerge_common.domain.reference import ModelReference
        space = SearchSpace((ModelReference("a"), ModelReference("b")), None, 6, 4, ("linear",))
        climb = example.HillClimb(space, SearchSpec(), seed=0)
        genome = climb.ask(0, Random(0)).genome
        climb.tell(ScoredCandidate("good", genome, 0.9, 0))
        climb.tell(ScoredCandidate("bad", genome, 0.1, 1))
        assert climb.ask(2, Random(2)).parents == ("good",)
    """,
    "sqlite_store": """
        from pathlib import Path
        store = example.SqliteArtifactStore(Path("a.db"), Path("local"))
        assert store.get(store.put("suites/x.json", b"{}")) == b"{}"
        staged = store.stage("scratch/abc")
        (staged / "a.txt").write_text("here")
        assert (store.open(store.commit(staged, "scratch/abc")) / "a.txt").read_text() == "here"
    """,
    "bootstrap": """
        import asyncio
        from pathlib import Path
        from evomerge_common.runtime.ports_factory import memory_ports
        from evomerge_common.runtime.settings import Settings
        made = asyncio.run(example.bootstrap(Settings(), memory_ports(Path("."))))
        assert made.name == "notifier" and len(made.background) == 1
    """,
}


def examples() -> dict[str, str]:
    """The code of each example, by the name of its file."""
    page = (ROOT / "docs/extending.md").read_text()
    blocks = re.findall(r"^```py(?:thon)?\n# (\S+)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    return {Path(path).stem: code for path, code in blocks}


def test_every_example_is_used() -> None:
    assert set(examples()) == {*USES, "__main__"}


@pytest.mark.parametrize("name", USES)
def test_an_example_does_what_the_page_says(name: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(examples()[name])
    command = [sys.executable, "-c", "import example\n" + textwrap.dedent(USES[name])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
