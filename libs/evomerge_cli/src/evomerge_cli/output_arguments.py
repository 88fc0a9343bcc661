"""What can be typed after the commands that hand models out: export, extract-lora, push. Standard library alone."""

from __future__ import annotations

import argparse

from evomerge_cli.argument_types import positive


def add_push_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what can be typed after `push`."""
    parser.add_argument(
        "model",
        metavar="RUN_OR_DIR",
        help="a run's output folder, or its id at a server; a model's folder, a GGUF file",
    )
    parser.add_argument("repository", metavar="ORG/NAME", help="on the Hub; made if missing")
    parser.add_argument("--public", action="store_true", help="for everybody (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="look and tell alone: nothing is made or sent")
    parser.add_argument(
        "--overwrite", action="store_true", help="where something else is there: replace it, in a commit after it"
    )
    parser.add_argument("--revision", "--branch", default="", metavar="BRANCH", help="made if missing (default: main)")
    parser.add_argument("--message", default="", metavar="TEXT", help="of the commit")
    parser.add_argument(
        "--gguf-repo", nargs="?", const="", metavar="ORG/NAME",
        help="a repository of its own for the GGUF files (without a name: ORG/NAME-GGUF)",
    )  # fmt: skip


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what can be typed after `export`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's output folder, a model folder, a GGUF file, a recipe file, or a file of experts",
    )
    parser.add_argument("out", metavar="OUT", help="a folder; for GGUF also a file's name")
    parser.add_argument("--format", choices=("hf", "gguf"), help="default: hf, a Hugging Face folder")
    parser.add_argument(
        "--type", metavar="TYPE",
        help="of GGUF: auto (bf16 or f16), f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0; q6_k, q4_k_m and so on "
        "where llama-quantize is on the PATH",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the model's own")
    parser.add_argument(
        "--adapter", action="store_true", help="a LoRA adapter for PEFT, of a run or recipe over adapters of one base"
    )
    parser.add_argument("--rank", type=positive, metavar="R", help="of the adapter, at most (default: exact)")
    parser.add_argument("--gguf", nargs="?", const="auto", metavar="TYPE", help="the same as --format gguf --type TYPE")


def add_extract_lora_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what can be typed after `extract-lora`."""
    parser.add_argument("model", metavar="FINETUNED", help="hub id, folder or GGUF file")
    parser.add_argument("--base", required=True, metavar="BASE", help="what it was fine-tuned from")
    parser.add_argument("--rank", type=positive, default=16, metavar="R", help="of the adapter (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the adapter")
    parser.add_argument(
        "--embeddings", choices=("save", "lora", "skip"), default="save",
        help="changed embeddings and head: kept whole, decomposed too, or left out (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=positive, default=2, metavar="N", help="processor threads (default: %(default)s)"
    )
