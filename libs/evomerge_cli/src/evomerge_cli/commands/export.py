"""`evomerge export`: a run's champion, a recipe or a model as a finished Hugging Face folder or a GGUF file; or, of
adapters over one base, as one adapter; or dense models as a mixture of experts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_cli.byte_progress import bytes_bar
from evomerge_cli.commands.extract_lora import tell
from evomerge_cli.commands.merge import fetch
from evomerge_cli.console import Console
from evomerge_cli.progress import stages
from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import InvalidInput
from evomerge_merging.moe.yaml import is_mixture, read_mixture
from evomerge_models.reference import look_up, resolve_reference

if TYPE_CHECKING:
    from evomerge_merging.export.gguf import GgufReport

Progress = Callable[[int, int], None]


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes a champion, a recipe or a model as a finished folder or a GGUF file."""
    if args.adapter:
        return _adapter(args, console)
    if args.rank:
        raise InvalidInput("--rank belongs to --adapter")
    path = Path(args.model).expanduser()
    out = Path(args.out).expanduser()
    kind = _gguf_type(args)
    if path.suffix in {".yml", ".yaml"} and is_mixture(path):
        if kind or args.dtype:
            raise InvalidInput("a mixture of experts is exported as a folder; its type is `dtype` in the file")
        return _mixture(path, out, console)
    if kind:
        return _to_gguf(args, path, out, kind, console)
    if path.suffix == ".gguf" and path.is_file() and not args.dtype:
        return _from_gguf(path, out, console)
    recipe = _recipe(args, path)
    models = fetch(recipe.sources(), console, recipe.base)
    with stages(console, "exporting") as progress:
        bytes_, parameters = _merge(recipe, models, out, lambda d, t: progress("exporting", d / max(1, t)))
    if not console.data({"out": str(out), "bytes": bytes_, "parameters": parameters}):
        console.out(f"{out}: {parameters:,} parameters, {bytes_:,} bytes")
    return 0


def _mixture(path: Path, out: Path, console: Console) -> int:
    from evomerge_merging.moe.assemble import assemble

    mixture = read_mixture(path).with_sources(look_up)
    models = fetch(mixture.sources(), console, None)
    with stages(console, "assembling experts") as progress:
        report = assemble(
            mixture, out, models=models, progress=lambda d, t: progress("assembling experts", d / max(1, t))
        )
    for note in report.notes:
        console.say(f"note: {note}")
    result = {"out": str(out), "bytes": report.bytes, "parameters": report.parameters, "notes": list(report.notes)}
    if not console.data(result):
        console.out(f"{out}: {report.parameters:,} parameters, {report.bytes:,} bytes")
    return 0


def _adapter(args: argparse.Namespace, console: Console) -> int:
    from evomerge_merging import export_adapter, read_recipe_file

    if args.dtype:
        raise InvalidInput("--dtype does not go with --adapter: its factors are float32")
    path = Path(args.model).expanduser()
    places = (path / "model" / "recipe.json", path / "recipe.json")
    found = next((place for place in places if place.is_file()), path)
    if not found.is_file():
        raise InvalidInput(f"{path} has no recipe.json; give a run's folder, a merged model's, or a recipe file")
    recipe = read_recipe_file(found)
    if found.suffix != ".json":
        recipe = recipe.with_sources(look_up)
    models = fetch(recipe.sources(), console, recipe.base)
    with bytes_bar(console, "exporting") as progress:
        report = export_adapter(recipe, Path(args.out).expanduser(), rank=args.rank, models=models, progress=progress)
    tell(report, console)
    return 0


def _gguf_type(args: argparse.Namespace) -> str:
    """The GGUF type that was asked for; "" for a folder."""
    if args.type and args.gguf:
        raise InvalidInput("--gguf TYPE and --type say the same: give one of them")
    if args.type and args.format != "gguf":
        raise InvalidInput("--type is a type of GGUF: say --format gguf too")
    kind: str = args.gguf or args.type or ("auto" if args.format == "gguf" else "")
    if kind and args.format == "hf":
        raise InvalidInput("--gguf and --format hf contradict each other: give one of them")
    return kind


def _recipe(args: argparse.Namespace, path: Path) -> Recipe:
    from evomerge_merging import read_recipe_file

    is_recipe = path.is_file() and path.suffix != ".gguf"
    recipe = (
        read_recipe_file(path).with_sources(look_up) if is_recipe else Recipe.of_source(resolve_reference(args.model))
    )
    return replace(recipe, out_dtype=args.dtype) if args.dtype else recipe


def _merge(recipe: Recipe, models: dict[str, Path], out: Path, progress: Progress) -> tuple[int, int]:
    from evomerge_merging import merge_recipe

    report = merge_recipe(recipe, models, out, progress=progress)
    return report.bytes, report.parameters


def _from_gguf(path: Path, out: Path, console: Console) -> int:
    from evomerge_models.describe import describe_model
    from evomerge_models.gguf.folder import write_model_folder

    with stages(console, "dequantising") as progress:
        write_model_folder(path, out, progress=lambda d, t: progress("dequantising", d / max(1, t)))
    made = describe_model(out)
    if not console.data({"out": str(out), "bytes": made.bytes, "parameters": made.parameters}):
        console.out(f"{out}: {made.parameters:,} parameters, {made.bytes:,} bytes")
    return 0


def _to_gguf(args: argparse.Namespace, path: Path, out: Path, kind: str, console: Console) -> int:
    from evomerge_models.gguf.quantizer import check_type

    kind = check_type(kind)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    file = out if out.suffix == ".gguf" else out / f"{name}{'' if kind == 'auto' else f'-{kind.upper()}'}.gguf"
    if file.exists():
        raise InvalidInput(f"{file} exists; give another name, or remove it first")
    recipe = _recipe(args, path)
    models = fetch(recipe.sources(), console, recipe.base)
    if recipe == Recipe.of_source(resolve_reference(args.model)):
        report = _write(models[recipe.sources()[0].key], file, kind, name, console)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".merged-", dir=file.parent) as work:
            with stages(console, "merging") as progress:
                _merge(recipe, models, Path(work) / name, lambda d, t: progress("merging", d / max(1, t)))
            report = _write(Path(work) / name, file, kind, name, console)
    for note in report.notes:
        console.say(f"note: {note}")
    result = {"out": str(file), "type": report.type, "bytes": report.bytes, "parameters": report.parameters,
            "tensors": report.tensors, "seconds": round(report.seconds, 2), "notes": list(report.notes)}  # fmt: skip
    if not console.data(result):
        console.out(f"{file}: {report.parameters:,} parameters as {report.type}, {report.bytes:,} bytes")
    return 0


def _write(folder: Path, file: Path, kind: str, name: str, console: Console) -> GgufReport:
    from evomerge_merging.export.gguf import export_gguf
    from evomerge_models.card import licence_of_folder
    from evomerge_models.gguf.modelfile import NAME, write_modelfile

    with stages(console, "writing GGUF") as progress:
        report = export_gguf(
            folder, file, kind, name=name, progress=lambda d, t: progress("writing GGUF", d / max(1, t))
        )
    if write_modelfile(file, licence=licence_of_folder(folder)) is None:
        console.say(f"note: {file.with_name(NAME)} is somebody else's and stays as it is")
    return report
