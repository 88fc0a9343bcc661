"""What can be typed, modern and classic, and what it comes to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge_cli.arguments import COMMANDS, parse
from evomerge_cli.search_arguments import DEFAULT_MODELS
from evomerge_cli.spec_source import prepare


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("demo --out x", "demo"),
        ("run spec.yaml --out x --seed 3", "run"),
        ("run --model1 a --model2 b --model3 c", "run"),
        ("--verbose run spec.yaml", "run"),
        ("merge recipe.yaml out", "merge"),
        ("evaluate model --suite s.yaml --split holdout --json", "evaluate"),
        ("generate model --prompt hello", "generate"),
        ("init", "init"),
        ("up", "up"),
        ("down", "down"),
        ("status --json", "status"),
        ("runs list", "runs"),
        ("runs cancel run-1 --finish", "runs"),
        ("report out", "report"),
        ("compare one two --out page.html", "compare"),
        ("export out folder", "export"),
        ("doctor --json", "doctor"),
        ("bench merge --size 1", "bench"),
        ("completion fish", "completion"),
        ("--run --model1 a --model2 b --model3 c", "run"),
        ("--model1 a --model2 b --model3 c --run", "run"),
        ("--download-and-merge --model1 a --model2 b --use-cli", "merge"),
        ("--evaluate model", "evaluate"),
        ("--generate model --prompt hello", "generate"),
        ("--generate-config --config x.yaml", "init"),
        ("--run --config spec.yaml --verbose", "run"),
    ],
)
def test_every_command_line_means_a_command(line: str, command: str) -> None:
    args = parse(line.split())
    assert args.command == command
    assert args.verbose == ("--verbose" in line)
    assert not args.quiet


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rnu", "did you mean 'run'"),
        ("run --evaluations 0", "at least 1"),
        ("run --evaluators many", "at least 1"),
        ("--run --ps-technique1 sleep", "did you mean 'slerp'"),
        ("--run --weight-mask-rate 1.5", "from 0 up to"),
        ("--generate model", "--prompt"),
        ("--run --evaluate model", "not allowed"),
        ("--modle1 a", "did you mean '--model1'"),
        ("--model1 a", "required"),
        ("runs lst", "did you mean 'list'"),
    ],
)
def test_a_line_that_means_nothing_is_answered(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(line.split())
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_classic_flags_become_the_classic_part_of_a_spec() -> None:
    line = (
        "--run --model1 o/a --model2 o/b --model3 o/c --ps-technique1 slerp --ps-technique2 dare --dfs-technique dfs "
        "--weight-mask-rate 0.3 --use-weight-rescale --mask-strategy magnitude --seed 5 --evaluations 9"
    )
    prepared = prepare(parse(line.split()))
    spec = prepared.spec
    assert spec.models == ("o/a", "o/b", "o/c")
    assert (spec.seed, spec.search.evaluations) == (5, 9)
    classic = spec.classic
    assert (classic.ps_technique1, classic.ps_technique2, classic.dfs_technique) == ("slerp", "dare", "dfs")
    assert (classic.weight_mask_rate, classic.use_weight_rescale) == (0.3, True)
    assert classic.mask_strategy == "magnitude"
    assert prepared.suite.name == "general"


def test_the_run_command_knows_the_same_flags() -> None:
    flags = "--model1 o/a --model2 o/b --model3 o/c --ps-technique1 linear --weight-mask-rate 0.2"
    assert prepare(parse(f"run {flags}".split())) == prepare(parse(f"--run {flags}".split()))


def test_a_mask_without_rescaling_stays_without() -> None:
    spec = prepare(parse(["run", "--model1", "o/a", "--model2", "o/b", "--weight-mask-rate", "0.5"])).spec
    assert spec.classic.use_weight_rescale is False


def test_defaults_fill_the_gaps_and_it_is_said() -> None:
    prepared = prepare(parse(["run", "--model2", "o/b"]))
    assert prepared.spec.models == (DEFAULT_MODELS[0], "o/b", DEFAULT_MODELS[2])
    assert len(prepared.notes) == 2
    assert prepare(parse(["run"])).spec.models == DEFAULT_MODELS


def test_the_same_words_give_the_same_digest_and_others_another() -> None:
    line = ["run", "--model1", "o/a", "--model2", "o/b"]
    assert prepare(parse(line)).digest == prepare(parse(line)).digest
    assert prepare(parse(line)).digest != prepare(parse([*line, "--seed", "1"])).digest


def test_the_suite_travels_inside_the_spec(tmp_path: Path) -> None:
    items = [{"text": f"sentence number {i}"} for i in range(20)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "suite.yaml").write_text("tasks: [{name: t, kind: perplexity, data: text.jsonl}]\n")
    (tmp_path / "run.yaml").write_text("models: [o/a, o/b]\nsuite: suite.yaml\n")
    prepared = prepare(parse(["run", str(tmp_path / "run.yaml")]))
    assert len(json.loads(prepared.text)["suite"]["tasks"][0]["items"]) == 20


def test_local_folders_are_told_from_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "run.yaml").write_text("models: [org/model, org/other, ./gone]\nsuite: general\n")
    monkeypatch.chdir("/")
    models = prepare(parse(["run", str(tmp_path / "run.yaml")])).spec.models
    assert models == (str(tmp_path / "org" / "model"), "org/other", str(tmp_path / "gone"))


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from evomerge_cli.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'grpc', 'transformers', 'nats', 'rich', 'yaml', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)
    assert time.monotonic() - began < 3.0  # 0.2 s alone; the machine that runs tests is busy
