"""One version and one licence, wherever they must be repeated; and the script that writes a new version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from evomerge_cli.arguments import parse
from evomerge_common import __version__

ROOT = Path(__file__).resolve().parents[3]
PROJECTS = sorted([*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")])
OVERLAY = Path("deploy/kustomize/overlays/production/kustomization.yaml")
HOME = Path("libs/evomerge_common/src/evomerge_common/__init__.py")


def versions(root: Path) -> dict[str, str]:
    found = {}
    for project in PROJECTS:
        path = root / project.relative_to(ROOT)
        found[str(path.relative_to(root))] = tomllib.loads(path.read_text())["project"]["version"]
    for image in yaml.safe_load((root / OVERLAY).read_text())["images"]:
        found[image["name"]] = str(image["newTag"])
    return found


def test_every_package_and_image_has_the_version() -> None:
    assert set(versions(ROOT).values()) == {__version__}, versions(ROOT)
    assert f"## [{__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_tells_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--version"])
    assert capsys.readouterr().out == f"evomerge {__version__}\n"


def test_every_package_declares_the_licence() -> None:
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]
    for project in PROJECTS:
        assert tomllib.loads(project.read_text())["project"]["license"] == "Apache-2.0", project


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path in (ROOT / "scripts/release", ROOT / "CHANGELOG.md", ROOT / HOME, ROOT / OVERLAY, *PROJECTS):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return tmp_path


def release(tree: Path, version: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, tree / "scripts/release", version], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_release_writes_the_version_everywhere(tree: Path) -> None:
    changelog = tree / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("## [Unreleased]\n", "## [Unreleased]\n\n- News.\n", 1))
    done = release(tree, "7.8.9")
    assert done.returncode == 0, done.stderr
    assert set(versions(tree).values()) == {"7.8.9"}
    assert '__version__ = "7.8.9"' in (tree / HOME).read_text()
    assert re.search(r"## \[Unreleased\]\n\n## \[7\.8\.9\] - \d{4}-\d\d-\d\d\n\n- News\.", changelog.read_text())


@pytest.mark.parametrize("version", ["v1", "1.0", __version__])
def test_a_release_that_cannot_be_writes_nothing(tree: Path, version: str) -> None:
    done = release(tree, version)
    assert done.returncode == 1
    assert "release: " in done.stderr
    assert set(versions(tree).values()) == {__version__}


def test_a_release_without_news_is_refused(tree: Path) -> None:
    changelog = tree / "CHANGELOG.md"
    changelog.write_text(re.sub(r"(## \[Unreleased\]\n).*?(## \[)", r"\1\n\2", changelog.read_text(), flags=re.DOTALL))
    done = release(tree, "7.8.9")
    assert done.returncode == 1
    assert "says nothing under [Unreleased]" in done.stderr
