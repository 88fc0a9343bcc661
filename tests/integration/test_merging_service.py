"""The merger service over its ports: jobs in, artifacts and events out; the gRPC API as its callers see it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from evomerge.v1 import merger_pb2
from evomerge_common.adapters import codec
from evomerge_common.domain.messages import ArtifactExported, CandidateMerged, ExportJob, Job, MergeJob, Model
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import InvalidInput, NonFiniteWeights, NotFound, RecipeError, UnsafeFile
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.ports_factory import Ports, memory_ports
from evomerge_common.runtime.service import Service
from evomerge_common.runtime.settings import Settings
from evomerge_merger import engine
from evomerge_merger.bootstrap import bootstrap
from evomerge_merger.grpc_api import MergerServicer
from evomerge_merger.handlers import ExportHandler, MergeHandler
from evomerge_models.gguf.folder import write_model_folder
from helpers import tiny_models
from helpers.support import assert_eventually
from helpers.tiny_merging import load_model, make_model, random_tensors, raw_model, rewrite, weights


@pytest.fixture
def ports(tmp_path: Path) -> Ports:
    return memory_ports(tmp_path / "store")


@pytest.fixture(scope="module")
def child() -> Any:
    process = ChildProcess()
    yield process
    process.close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, ...]:
    root = tmp_path_factory.mktemp("models")
    base = make_model(root / "m0", "llama")
    make_model(root / "m1", "llama", seed=1, near=base, rms_norm_eps=1e-5)
    return tuple(
        Model(reference=f"org/m{i}", digest=f"sha256:{i:064x}", uri=(root / f"m{i}").as_uri()) for i in range(2)
    )


def recipe(sources: tuple[Model, ...], **own: Any) -> Recipe:
    pairs = [(ModelReference(one.reference, digest=one.digest), {"weight": 0.5}) for one in sources]
    return Recipe.of_models("linear", pairs, **own)


def job(sources: tuple[Model, ...], what: Recipe) -> Job:
    payload = MergeJob(recipe_json=what.to_json(), recipe_digest=what.digest, sources=sources)
    return Job(job_id=f"merge-{what.digest[:32]}-run", run_id="run", payload=payload)


def folder(uri: str) -> Path:
    return Path(urlsplit(uri).path)


async def test_a_merge_job_becomes_a_model_in_the_scratch_area(
    ports: Ports, child: ChildProcess, sources: tuple[Model, ...]
) -> None:
    what = recipe(sources)
    handler = MergeHandler(ports=ports, child=child)
    result = await handler(job(sources, what))
    assert isinstance(result, CandidateMerged)
    assert result.recipe_digest == what.digest
    assert result.seconds > 0
    out = ports.artifacts.open(result.uri)
    assert result.bytes == (out / "model.safetensors").stat().st_size
    expected = [weights(folder(one.uri))["model.norm.weight"] for one in sources]
    torch.testing.assert_close(weights(out)["model.norm.weight"], (expected[0] + expected[1]) / 2)
    load_model(out)
    made = (out / "model.safetensors").stat().st_mtime_ns
    again = await handler(job(sources, what))
    assert again.uri == result.uri
    assert (out / "model.safetensors").stat().st_mtime_ns == made
    ports.artifacts.delete(result.uri)
    third = await handler(job(sources, what))
    assert ports.artifacts.open(third.uri).is_dir()


async def test_torch_is_imported_beside_the_first_merges_where_the_merger_is_warm(
    ports: Ports, sources: tuple[Model, ...]
) -> None:
    """Most merges need none; the first that does would wait for seconds, and evaluators with it."""
    imported = "'torch' in __import__('sys').modules"
    for warm in (False, True):
        process = ChildProcess(initializer=engine.initialise, initargs=(warm,))
        try:
            await MergeHandler(ports=ports, child=process)(job(sources, recipe(sources, seed=int(warm))))
            if warm:
                await assert_eventually(lambda process=process: process.call(eval, imported), 60)
            else:
                assert not await process.call(eval, imported)
        finally:
            await asyncio.to_thread(process.close)


async def test_an_export_job_becomes_a_finished_model(
    ports: Ports, child: ChildProcess, sources: tuple[Model, ...]
) -> None:
    what = recipe(sources, dtype="bfloat16")
    handler = ExportHandler(ports=ports, child=child)

    def export(**change: str) -> Job:
        fields = {"format": "hf", "destination": "champion", **change}
        payload = ExportJob(recipe_json=what.to_json(), recipe_digest=what.digest, sources=sources, **fields)
        return Job(job_id="export-1", run_id="run", payload=payload)

    result = await handler(export())
    assert isinstance(result, ArtifactExported)
    assert result.uri.endswith("exports/run/champion")
    assert result.notes == (
        "org/m0 has no tokenizer: vocabularies are taken to be the same",
        "rms_norm_eps is 1e-05 in org/m1; org/m0's 1e-06 is kept",
    )
    out = ports.artifacts.open(result.uri)
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "recipe.json", "mergekit_config.yml"} <= names
    assert "base_model:\n- org/m0\n- org/m1\n" in (out / "README.md").read_text()
    assert weights(out)["model.norm.weight"].dtype == torch.bfloat16
    assert Recipe.from_json((out / "recipe.json").read_text()).digest == what.digest
    mine = await handler(export(card="# Mine\n", destination="other"))
    assert (ports.artifacts.open(mine.uri) / "README.md").read_text() == "# Mine\n"
    with pytest.raises(InvalidInput, match="valid: hf, gguf"):
        await handler(export(format="ggfu"))
    with pytest.raises(InvalidInput, match="belongs to format gguf"):
        await handler(export(gguf_type="q8_0"))
    for bad in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(UnsafeFile):
            await handler(export(destination=bad))


async def test_an_export_job_becomes_a_gguf_file(ports: Ports, child: ChildProcess, tmp_path: Path) -> None:
    references = []
    for seed, name in enumerate("ab"):
        path = tiny_models.make(tmp_path / name, "llama", seed=seed)
        references.append(Model(reference=f"org/{name}", digest=f"sha256:{name}", uri=path.as_uri()))
    what = recipe(tuple(references))

    def export(kind: str, **change: Any) -> Job:
        payload = ExportJob(
            recipe_json=what.to_json(), recipe_digest=what.digest, sources=tuple(references), format="gguf",
            destination="gguf", gguf_type=kind,
        )  # fmt: skip
        return Job(job_id="export-2", run_id="run", payload=replace(payload, **change))

    handler = ExportHandler(ports=ports, child=child)
    result = await handler(export("f32"))
    assert (result.format, result.recipe_digest) == ("gguf", what.digest)
    out = ports.artifacts.open(result.uri)
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "champion-F32.gguf"]
    assert "\nFROM ./champion-F32.gguf\n" in (out / "Modelfile").read_text()
    assert result.bytes == (out / "champion-F32.gguf").stat().st_size
    whole = await handler(export("", format="hf", destination="model"))
    write_model_folder(out / "champion-F32.gguf", tmp_path / "back")
    merged, back = weights(ports.artifacts.open(whole.uri)), weights(tmp_path / "back")
    assert merged.keys() == back.keys()
    assert all(torch.equal(merged[name], back[name]) for name in merged)
    quantised = await handler(export("", destination="small"))
    names = {path.name for path in ports.artifacts.open(quantised.uri).iterdir()}
    assert names == {"Modelfile", "champion-F16.gguf"}
    with pytest.raises(InvalidInput, match="did you mean"):
        await handler(export("q8_1", destination="bad"))
    assert not list((tmp_path / "store").rglob("bad*"))


async def test_what_is_wrong_with_a_job_comes_back_as_its_own_error_and_leaves_nothing(
    ports: Ports, child: ChildProcess, tmp_path: Path, sources: tuple[Model, ...]
) -> None:
    bad = raw_model(tmp_path / "bad", random_tensors(0, 10))
    rewrite(bad, {"norm.weight": torch.full((8,), float("nan"))})
    model = Model(reference="org/bad", digest="sha256:bad", uri=bad.as_uri())
    handler = MergeHandler(ports=ports, child=child)
    with pytest.raises(NonFiniteWeights, match=r"norm\.weight"):
        await handler(job((model,), recipe((model,))))
    gone = Model(reference="org/gone", digest="sha256:gone", uri=(tmp_path / "gone").as_uri())
    with pytest.raises(NotFound, match="org/gone"):
        await handler(job((gone,), recipe((gone,))))
    wrong = Recipe.of_models("linaer", [(ModelReference("org/m0", digest=sources[0].digest), {})])
    with pytest.raises(RecipeError, match="did you mean 'linear'"):
        await handler(job(sources, wrong))
    assert not list((tmp_path / "store").rglob("*.safetensors"))


@pytest.fixture
async def service(ports: Ports, tmp_path: Path) -> AsyncIterator[Service]:
    service = await bootstrap(Settings(artifact_store=str(tmp_path / "store"), state_dir=tmp_path / "state"), ports)
    yield service
    for close in service.closers:
        await close()


async def test_the_service_has_two_workers_and_one_api(service: Service) -> None:
    assert [worker.kind for worker in service.workers] == ["merge", "export"]
    assert [name for name, _ in service.servicers] == ["evomerge.v1.MergerService"]


async def test_the_service_itself_never_imports_torch() -> None:

    script = (
        "import evomerge_merger.bootstrap, sys; sys.exit('torch' in sys.modules or 'evomerge_merging' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await process.wait() == 0


async def test_the_api_validates_lists_queues_and_tells(
    ports: Ports, child: ChildProcess, sources: tuple[Model, ...]
) -> None:
    api = MergerServicer(ports=ports, child=child)
    context: Any = None
    text = "merge_method: linear\nmodels:\n" + "".join(
        f"- {{model: {one.reference}, parameters: {{weight: 0.5}}}}\n" for one in sources
    )
    valid = await api.ValidateRecipe(merger_pb2.ValidateRecipeRequest(recipe=text), context)
    assert list(valid.models) == ["org/m0", "org/m1"]
    assert Recipe.from_json(valid.recipe_json).digest == valid.recipe_digest
    again = await api.ValidateRecipe(merger_pb2.ValidateRecipeRequest(recipe=valid.recipe_json), context)
    assert again.recipe_digest == valid.recipe_digest
    stray = await api.ValidateRecipe(
        merger_pb2.ValidateRecipeRequest(recipe=text + "parameters: {int8_mask: true}\n"), context
    )
    assert stray.recipe_digest == valid.recipe_digest
    assert list(stray.notes) == ["linear does not use 'int8_mask': it has no effect (parameters.int8_mask)"]
    with pytest.raises(RecipeError, match=":1:"):
        await api.ValidateRecipe(merger_pb2.ValidateRecipeRequest(recipe=text.replace("linear", "linaer")), context)

    methods = {one.name: one for one in (await api.ListMethods(merger_pb2.ListMethodsRequest(), context)).methods}
    assert {"linear", "ties", "dfs"} <= set(methods)
    weight = next(one for one in methods["linear"].parameters if one.name == "weight")
    assert (weight.type, weight.default, weight.per_model) == ("float", "", True)

    request = merger_pb2.MergeRequest(recipe=text, sources=[codec.to_proto(one) for one in sources])
    queued = await api.Merge(request, context)
    assert queued.state == "queued"
    assert queued.recipe_digest == recipe(sources).digest
    assert (await api.GetMerge(merger_pb2.GetMergeRequest(job_id=queued.job_id), context)).state == "queued"
    delivery = await ports.queue.fetch("merge", 1.0)
    assert delivery is not None
    assert delivery.job.job_id == queued.job_id
    result = await MergeHandler(ports=ports, child=child)(delivery.job)
    assert ports.artifacts.open(result.uri).is_dir()
    with pytest.raises(NotFound):
        await api.GetMerge(merger_pb2.GetMergeRequest(job_id="nonsense"), context)
