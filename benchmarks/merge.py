"""Merges against mergekit, as whole processes on the same files, and against the disk: times, memory, a picture.

Four random llama models (a base and three fine-tunes) are made on the spot. Then, for each method in turn, `evomerge
merge` and `mergekit-yaml` merge them, alternating; medians count. In this process, a linear merge alternates with
reading the same inputs and writing the same output with bare system calls; both sync.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from evomerge_cli.console import Console
from evomerge_merging import execute, plan_merge, read_recipe_file
from evomerge_merging.io.writer import SafetensorsWriter
from evomerge_merging.methods import methods
from evomerge_models.dtypes import BF16
from evomerge_models.headers import TensorSpec

SIZES = {"0.02": (256, 4, 768), "0.4": (1024, 24, 3584), "1.5": (2048, 24, 6400)}
"""Billions of parameters → hidden size, layers, width of the feed-forward part."""
VOCABULARY = 32_000
LIMIT_RSS_MB = 1500.0
IN_PROCESS_LIMIT = 1.5
BARS = dict.fromkeys(["linear", "slerp"], 4.0) | dict.fromkeys(
    ["ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"], 15.0
)
"""How many times faster than mergekit each method is to be."""
PLAN = """
import sys, pathlib
from evomerge_merging import plan_merge, read_recipe_file
plan_merge(read_recipe_file(pathlib.Path(sys.argv[1]))).close()
"""
DEFAULT_METHODS = ["linear", "slerp", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs"]


@dataclass
class Row:
    """Seconds and peak resident MB of each repeat.

    Attributes:
        user, system: seconds of all cores that evomerge spent in its own code (arithmetic, mostly) and in the kernel's
            (copying between the page cache and its memory, mostly).
        start: seconds of a process that plans the merge and ends: interpreter, imports, headers.

    """

    method: str
    ours: list[float] = field(default_factory=list)
    ours_rss: list[float] = field(default_factory=list)
    user: list[float] = field(default_factory=list)
    system: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    mergekit: list[float] = field(default_factory=list)
    mergekit_rss: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.mergekit) / statistics.median(self.ours) if self.mergekit else None

    def parts(self, threads: int) -> dict[str, float]:
        """Where evomerge's wall time goes, in seconds, by medians: CPU time is shared by the threads."""
        whole, start = statistics.median(self.ours), statistics.median(self.start)
        computing, copying = (statistics.median(times) / threads for times in (self.user, self.system))
        computing = max(0.0, computing - start / threads)
        waiting = max(0.0, whole - start - computing - copying)
        return {"start and plan": start, "computing": computing, "reading and writing": copying, "waiting": waiting}


def main() -> int:
    args = _arguments()
    if args.mergekit and not args.mergekit.is_file():
        raise SystemExit(f"no {args.mergekit}: `scripts/golden` makes that environment; or give --no-mergekit")
    with tempfile.TemporaryDirectory(dir=args.cache) as temporary:
        scratch = Path(temporary)
        models = make_models((args.cache or scratch) / f"merge-{args.size}B", args.size)
        in_process = measure_in_process(models, scratch, args.repeat)
        rows: list[Row] = []
        for name in args.methods:
            rows.append(measure(name, models, scratch, args))
            keep(rows, in_process, args)  # the table so far: 1.5 billion parameters take mergekit an hour
    report(rows, in_process, args, Console())
    return 0


def keep(rows: list[Row], in_process: dict[str, Any], args: argparse.Namespace) -> None:
    """Writes JSON, picture and table."""
    result = {
        "parameters_billion": float(args.size),
        "threads": args.threads,
        "mergekit_flags": args.mergekit_flags.split(),
        "in_process_linear": in_process,
        "methods": [
            asdict(row) | {"ratio": row.ratio, "bar": BARS.get(row.method), "parts": row.parts(args.threads)}
            for row in rows
        ],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"merge-{args.size}B"
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(rows, in_process, stem.with_name(f"{stem.name}.png"), args)
    with stem.with_name(f"{stem.name}.txt").open("w") as file:
        report(rows, in_process, args, Console(stdout=file))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.4", help="billions of parameters (default: %(default)s)")
    known = [name for name in DEFAULT_METHODS if name in methods()]
    parser.add_argument("--methods", nargs="+", choices=[m for m in BARS if m in methods()], default=known)
    parser.add_argument("--repeat", type=int, default=3, help="of each whole process (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of evomerge (default: %(default)s)")
    default = Path(__file__).resolve().parents[1] / ".venv-golden" / "bin" / "mergekit-yaml"
    parser.add_argument("--mergekit", type=Path, default=default, help="mergekit-yaml of mergekit's own environment")
    parser.add_argument("--no-mergekit", dest="mergekit", action="store_const", const=None)
    parser.add_argument("--mergekit-flags", default="--lazy-unpickle --no-copy-tokenizer --quiet")
    parser.add_argument("--cache", type=Path, help="folder that keeps the models for the next time")
    parser.add_argument("--out", type=Path, default=Path("bench-merge"), help="folder of the results")
    args = parser.parse_args()
    if args.cache:
        args.cache.mkdir(parents=True, exist_ok=True)
    return args


# ---- models ----


def make_models(folder: Path, size: str) -> list[Path]:
    """Base and three fine-tunes, bfloat16: normal weights, and changes of a tenth of their size."""
    paths = [folder / name for name in ("base", "tuned-1", "tuned-2", "tuned-3")]
    if folder.exists():
        return paths
    hidden, layers, wide = SIZES[size]
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    specs = list(_llama(hidden, layers, wide))
    writers = []
    for path in paths:
        (partial / path.name).mkdir(parents=True)
        _write_small_files(partial / path.name, hidden, layers, wide)
        writers.append(SafetensorsWriter(partial / path.name / "model.safetensors", specs, {"format": "pt"}))
    generator = torch.Generator().manual_seed(0)
    for name, shape, _ in specs:
        base = torch.randn(shape, generator=generator).mul_(0.02)
        writers[0].write(name, 0, base.bfloat16())
        for writer in writers[1:]:
            writer.write(name, 0, torch.randn(shape, generator=generator).mul_(0.002).add_(base).bfloat16())
    for writer in writers:
        writer.close()
    partial.rename(folder)
    return paths


def _llama(hidden: int, layers: int, wide: int) -> Iterator[TensorSpec]:
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden),
        "self_attn.v_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    yield "model.embed_tokens.weight", (VOCABULARY, hidden), BF16
    for layer in range(layers):
        for name, shape in shapes.items():
            yield f"model.layers.{layer}.{name}.weight", shape, BF16
    yield "model.norm.weight", (hidden,), BF16
    yield "lm_head.weight", (VOCABULARY, hidden), BF16


def _write_small_files(folder: Path, hidden: int, layers: int, wide: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64,
        "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokens = ["<unk>", "<s>", "</s>", *(chr(letter) for letter in range(97, 123))]
    tokenizer = {
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


# ---- whole processes ----


def recipe_text(method: str, models: list[Path]) -> str:
    """The same YAML for both."""
    base, *tuned = map(str, models)
    if method == "slerp":
        parts: dict[str, Any] = {"models": [{"model": base}, {"model": tuned[0]}], "parameters": {"t": 0.4}}
    else:
        parameters = {"weight": 0.4} | ({} if method == "linear" else {"density": 0.5})
        if method.startswith("della"):
            parameters["epsilon"] = 0.1
        if method.startswith("breadcrumbs"):
            parameters["gamma"] = 0.01
        parts = {"models": [{"model": model, "parameters": parameters} for model in tuned]}
    if method != "linear":
        parts["base_model"] = base
    return yaml.safe_dump({"merge_method": method, "dtype": "bfloat16", **parts})


def measure(method: str, models: list[Path], scratch: Path, args: argparse.Namespace) -> Row:
    """Alternates the two as whole processes; outputs are removed and the disk is quiet before each."""
    recipe, out = scratch / f"{method}.yml", scratch / "out"
    recipe.write_text(recipe_text(method, models))
    ours = [sys.executable, "-m", "evomerge_cli", "merge", str(recipe), str(out), "--threads", str(args.threads)]
    theirs = [str(args.mergekit), str(recipe), str(out), *args.mergekit_flags.split()]
    row = Row(method)
    for _ in range(args.repeat):
        for command, times, peaks in ((ours, row.ours, row.ours_rss), (theirs, row.mergekit, row.mergekit_rss)):
            if command is theirs and not args.mergekit:
                continue
            seconds, usage, peak = run(command, scratch / "log")
            times.append(seconds)
            peaks.append(peak)
            if command is ours:
                row.user.append(usage.ru_utime)
                row.system.append(usage.ru_stime)
                row.start.append(run([sys.executable, "-c", PLAN, str(recipe)], scratch / "log")[0])
            shutil.rmtree(out)
            print(f"{method}: {Path(command[0]).name} {seconds:.2f} s, {peak:.0f} MB", file=sys.stderr, flush=True)
    return row


def run(command: list[str], log: Path) -> tuple[float, resource.struct_rusage, float]:
    """Seconds of a command, what it used, and its peak resident memory in MB."""
    os.sync()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        ended, peaks = threading.Event(), [0.0]
        watcher = threading.Thread(target=_watch_memory, args=(process.pid, ended, peaks))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-4000:]}")
    return seconds, usage, peaks[-1] or usage.ru_maxrss / 1e3


def _watch_memory(pid: int, ended: threading.Event, peaks: list[float]) -> None:
    """The kernel's own high-water mark, read again and again: `ru_maxrss` begins with what this process holds."""
    with contextlib.suppress(OSError, StopIteration):
        while not ended.wait(0.05):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks.append(float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1e3)


# ---- in process ----


def measure_in_process(models: list[Path], scratch: Path, repeat: int) -> dict[str, Any]:
    """A linear merge of the fine-tunes against reading them and writing as much; both with two threads and a sync."""
    recipe, out = scratch / "in-process.yml", scratch / "out"
    recipe.write_text(recipe_text("linear", models))
    merges: list[float] = []
    floors: list[float] = []
    parts: dict[str, list[float]] = {"read": [], "write": []}
    for _ in range(repeat):
        os.sync()
        begun = time.perf_counter()
        with plan_merge(read_recipe_file(recipe)) as plan:
            execute(plan, out, threads=2)
        merges.append(time.perf_counter() - begun)
        shutil.rmtree(out)
        os.sync()
        begun = time.perf_counter()
        for model in models[1:]:
            _copy(model / "model.safetensors", None)
        parts["read"].append(time.perf_counter() - begun)
        size = (models[1] / "model.safetensors").stat().st_size
        _copy(None, scratch / "written", size)
        floors.append(time.perf_counter() - begun)
        parts["write"].append(floors[-1] - parts["read"][-1])
        (scratch / "written").unlink()
    medians = {name: statistics.median(values) for name, values in parts.items()}
    ratio = statistics.median(merges) / statistics.median(floors)
    return {"merge": merges, "read_and_write": floors, "ratio": ratio, "bar": IN_PROCESS_LIMIT, **medians}


def _copy(source: Path | None, target: Path | None, size: int = 0, chunk: int = 1 << 22) -> None:
    """Reads a file, or writes one of zeros and syncs it, in two threads."""
    flags = os.O_RDONLY if source else os.O_RDWR | os.O_CREAT | os.O_EXCL
    handle = os.open(source or target, flags)  # type: ignore[arg-type]
    size = size or os.fstat(handle).st_size

    def work(first: int) -> None:
        buffer = memoryview(bytearray(chunk))
        for offset in range(first * chunk, size, 2 * chunk):
            if source:
                os.preadv(handle, [buffer], offset)
            else:
                os.pwrite(handle, buffer[: min(chunk, size - offset)], offset)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if target:
        os.fsync(handle)
    os.close(handle)


# ---- results ----


def report(rows: list[Row], in_process: dict[str, Any], args: argparse.Namespace, console: Console) -> None:
    columns = ["method", "evomerge, s", "mergekit, s", "ratio", "bar", "evomerge, MB", "mergekit, MB"]
    cells = [
        [
            row.method, _median(row.ours), _median(row.mergekit), f"{row.ratio:.1f} x" if row.ratio else "-",
            f"{BARS[row.method]:.0f} x", _median(row.ours_rss, 0), _median(row.mergekit_rss, 0),
        ]
        for row in rows
    ]  # fmt: skip
    console.table(
        columns, cells, title=f"{args.size} B parameters, bfloat16, base and three fine-tunes, whole processes"
    )
    shares = [
        [row.method, _median(row.ours), *(f"{seconds:.2f}" for seconds in row.parts(args.threads).values())]
        for row in rows
    ]
    console.table(
        ["method", "evomerge, s", *(rows[0].parts(args.threads) if rows else ())],
        shares,
        title=f"where the time goes: seconds of wall, with CPU time shared by {args.threads} threads",
    )
    console.out(
        f"linear in process: {_median(in_process['merge'])} s; reading the inputs {in_process['read']:.2f} s, writing "
        f"as much {in_process['write']:.2f} s: {in_process['ratio']:.2f} x (bar: {IN_PROCESS_LIMIT} x or less)"
    )


def _median(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):,.{digits}f}" if values else "-"


def draw(rows: list[Row], in_process: dict[str, Any], path: Path, args: argparse.Namespace) -> None:
    """Bars of ratios with what each is to reach, times beside them; where the time goes; peak memory."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    blue, grey, red = "#2a6fb0", "#9aa5b1", "#c0392b"
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(17, 0.7 * len(rows) + 2), layout="constrained", width_ratios=[3, 2.4, 2]
    )
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows, strict=True):
        if row.ratio:
            left.barh(place, row.ratio, 0.6, color=blue)
            text = f" {row.ratio:.1f} x   {_median(row.ours)} s against {_median(row.mergekit)} s"
            left.text(max(row.ratio, BARS[row.method]), place, text, va="center", fontsize=9)
        left.plot([BARS[row.method]] * 2, [place - 0.42, place + 0.42], color=red, linewidth=2)
    left.set_xlim(0, 1.6 * max([row.ratio or 0.0 for row in rows] + [BARS[row.method] for row in rows]))
    left.set_title("times faster than mergekit, whole processes (red: what is to be reached)", fontsize=10, loc="left")
    ends = [0.0] * len(rows)
    for name, color in zip(rows[0].parts(args.threads), ("#c9a227", blue, "#6fb07a", grey), strict=True):
        seconds = [row.parts(args.threads)[name] for row in rows]
        middle.barh(places, seconds, 0.6, left=ends, color=color, label=name)
        ends = [end + more for end, more in zip(ends, seconds, strict=True)]
    middle.set_title("where evomerge's time goes, s of wall", fontsize=10, loc="left")
    middle.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
    for offset, color, name in ((0.2, blue, "evomerge"), (-0.2, grey, "mergekit")):
        values = [row.ours_rss if name == "evomerge" else row.mergekit_rss for row in rows]
        medians = [statistics.median(value) if value else 0.0 for value in values]
        right.barh([place + offset for place in places], medians, 0.38, color=color, label=name)
    right.axvline(LIMIT_RSS_MB, color=red, linewidth=2)
    right.set_title("peak resident memory, MB (red: the limit)", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
    for axes in (left, middle, right):
        axes.set_yticks(places, [row.method for row in rows])
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{args.size} B parameters in bfloat16, base and three fine-tunes; linear in process takes "
        f"{in_process['ratio']:.2f} x the time of reading its inputs and writing its output (limit "
        f"{IN_PROCESS_LIMIT} x)",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
