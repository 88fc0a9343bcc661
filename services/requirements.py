# ruff: noqa: INP001 - a script, not a package
"""Prints the third-party packages that the packages in the given folders ask for; used by the image build."""

import sys
import tomllib
from pathlib import Path

for folder in sys.argv[1:]:
    project = tomllib.loads(Path(folder, "pyproject.toml").read_text())["project"]
    for name in [*project["dependencies"], *project.get("optional-dependencies", {}).get("gpu", [])]:
        if not name.startswith("evomerge-"):
            sys.stdout.write(f"{name}\n")
