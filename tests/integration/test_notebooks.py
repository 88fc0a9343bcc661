"""The notebooks run as they are: the report's in a run's folder, the examples on tiny models and a small run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from evomerge_cli.__main__ import main
from evomerge_cli.run_folder import RunFolder
from evomerge_report.notebook import notebook_text
from helpers import synthetic_log

EXAMPLES = Path(__file__).parents[2] / "examples"
EVIL = "run-</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, whose report has been written with its notebook."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.hidden.mkdir()
    folder.keep_suite(synthetic_log.suite())
    folder.write_events(synthetic_log.events(EVIL))
    assert main(["report", str(folder.out), "--notebook"]) == 0
    return folder.out


def executed(file: Path, folder: Path) -> str:
    """Runs a notebook in a folder; returns what its cells printed."""
    book = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(book)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    return "".join(output.get("text", "") for output in outputs)


def test_the_reports_notebook_runs_in_its_folder(run: Path) -> None:
    text = executed(run / "report" / "report.ipynb", run / "report")
    assert "The champion improved on its best source" in text
    assert "arithmetic: champion" in text
    assert EVIL not in notebook_text(), "a run's names stand in its files alone"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.ipynb")))
def test_an_example_runs(name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_RUN", str(run))
    assert executed(EXAMPLES / f"{name}.ipynb", tmp_path)
