"""What a URI means on this machine."""

from __future__ import annotations

from pathlib import Path

from evomerge_common.domain.messages import Model
from evomerge_common.runtime.uris import model_folders, path_of_uri


def test_a_file_uri_and_a_plain_path_are_the_same_path(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    assert path_of_uri(folder.as_uri()) == path_of_uri(str(folder)) == folder


def test_other_uris_and_other_hosts_have_no_path_here() -> None:
    assert [path_of_uri(uri) for uri in ("s3://bucket/key", "file://elsewhere/x", "")] == [None, None, None]


def test_models_out_of_reach_are_left_out(tmp_path: Path) -> None:
    models = (Model(reference="a", uri=tmp_path.as_uri()), Model(reference="b", uri="file:///no/such", digest="d"))
    assert model_folders(models) == {"a": tmp_path}
