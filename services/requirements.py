# ruff: noqa: INP001 - a script, not a package
"""What a service is made of, from the pyproject files alone; used by the image build.

`requirements.py packages SERVICE` prints the third-party packages that it and our libraries under it ask for;
`requirements.py folders SERVICE` prints the folders of these libraries and of itself, libraries first.
"""

import sys
import tomllib
from pathlib import Path


def project_of(folder: str) -> dict:
    """Reads the [project] table of a package."""
    return tomllib.loads(Path(folder, "pyproject.toml").read_text())["project"]


def folders_of(folder: str) -> list[str]:
    """Lists the folder's own libraries, theirs first, then itself."""
    found: list[str] = []
    for name in project_of(folder)["dependencies"]:
        if name.startswith("evomerge-"):
            found += folders_of(f"libs/{name.replace('-', '_')}")
    return list(dict.fromkeys([*found, folder]))


EXTRAS = ("gpu", "otlp")
"""Extras that the images have, for whoever switches them on."""

what, service = sys.argv[1:]
folders = folders_of(f"services/{service}")
if what == "packages":
    for project in map(project_of, folders):
        optional = project.get("optional-dependencies", {})
        for name in [*project["dependencies"], *(name for extra in EXTRAS for name in optional.get(extra, []))]:
            if not name.startswith("evomerge-"):
                sys.stdout.write(f"{name}\n")
else:
    sys.stdout.write("".join(f"./{folder}\n" for folder in folders))
