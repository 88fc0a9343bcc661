"""The packages as wheels, installed where this repository is not."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = sorted([*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")])


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([ROOT / "scripts/wheels", out], check=True, stdout=subprocess.DEVNULL, timeout=300)
    return out


@pytest.fixture(scope="module")
def python(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A clean environment with our wheels; what others wrote comes from this one, whose links to our sources do not."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    inside = sysconfig.get_path("purelib", vars={"base": str(place)})
    files = sorted(wheels.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", inside, *files], check=True)
    return [str(place / "bin/python"), "-P"]


def run(python: list[str], *words: str, cwd: Path) -> str:
    environ = {
        **os.environ,
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "HF_HUB_OFFLINE": "1",
        "EVOMERGE_STATE_DIR": str(cwd / "state"),
    }
    done = subprocess.run([*python, *words], cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_a_package_is_in_its_wheel(wheels: Path) -> None:
    assert len(list(wheels.glob("*.whl"))) == len(PROJECTS)
    for project in PROJECTS:
        name = tomllib.loads(project.read_text())["project"]["name"].replace("-", "_")
        [wheel] = wheels.glob(f"{name}-*.whl")
        inside = set(zipfile.ZipFile(wheel).namelist())
        listed = subprocess.run(
            ["git", "ls-files", "src"], cwd=project.parent, capture_output=True, text=True, check=True
        )
        wanted = {line.removeprefix("src/") for line in listed.stdout.splitlines() if not line.endswith(".c")}
        assert wanted
        assert wanted <= inside, f"{wheel.name} lacks {sorted(wanted - inside)}"


def test_the_command_of_the_wheels_works_without_the_repository(python: list[str], tmp_path: Path) -> None:
    code = (
        "import evomerge_cli, evomerge_reporter, evomerge_merging.native as n, evomerge.v1.selector_pb2 as p; "
        "print(evomerge_cli.__file__, evomerge_reporter.__file__, p.__file__, bool(n.library()))"
    )
    *files, compiled = run(python, "-c", code, cwd=tmp_path).split()
    assert all(Path(file).is_relative_to(Path(python[0]).parents[1]) for file in files)
    assert compiled == "True"
    run(python, "-m", "evomerge_cli", "init", "spec.yaml", cwd=tmp_path)
    code = "import pathlib, evomerge_cli.spec_source as s; print(s.resolve_suite('general', pathlib.Path()).name)"
    assert run(python, "-c", code, cwd=tmp_path).strip() == "general"
