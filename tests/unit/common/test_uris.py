"""What a URI means on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge_common.adapters.filesystem import FilesystemModelStore
from evomerge_common.domain.messages import Model
from evomerge_common.errors import NotFound, UnservedScheme
from evomerge_common.runtime.sources import source_folders
from evomerge_common.runtime.uris import local_path


def test_a_file_uri_and_a_plain_path_are_the_same_path(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    assert local_path(folder.as_uri()) == local_path(str(folder)) == folder
    assert local_path(f"file:{folder.as_uri().removeprefix('file://')}") == folder
    assert local_path("a:b/c") == Path("a:b/c")


def test_other_hosts_have_no_path_here() -> None:
    for uri in ("file://elsewhere/x", ""):
        with pytest.raises(NotFound):
            local_path(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/key", "S3://b/x", "https://example.org/x", "s3:/b/x"])
def test_other_schemes_are_refused_by_name(uri: str) -> None:
    with pytest.raises(UnservedScheme, match=rf"^{uri}: no store serves {uri.partition(':')[0]}:// .*served: file://"):
        local_path(uri)


def test_models_out_of_reach_are_left_out(tmp_path: Path) -> None:
    models = (Model(reference="a", uri=tmp_path.as_uri()), Model(reference="b", uri="file:///no/such", digest="d"))
    assert source_folders(models, FilesystemModelStore(tmp_path / "store")) == {"a": tmp_path}


def test_a_source_of_a_scheme_that_nobody_serves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnservedScheme, match="s3://bucket/a"):
        source_folders([Model(reference="a", uri="s3://bucket/a")], FilesystemModelStore(tmp_path))
