"""Kinds of task: what their items hold, what they can be told, and how the composed ones are built from the basic.

Basic kinds are what a model can be asked: the likelihood of choices (multiple_choice), of a text (perplexity), or a
greedy continuation (exact_match, instruction_following, code). Composed kinds are another form of writing them:
`lower` turns their items into those of a basic kind. Three kinds are computed elsewhere: lm_eval and plugin bring
items and metrics of their own, efficiency asks nothing.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge_common.domain.judges import CHECKS, check_checks
from evomerge_common.errors import Path, SuiteError, did_you_mean

Content = Mapping[str, Any]
CODE_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```")
SHUFFLES = 3


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
        summary: one line for people.
        fields: what each item must have; `optional`: what it may have.
        metrics: valid metrics, the default first; empty: any word.
        options: keys of the task beside the common ones, with their defaults; a None default means "must be given".
        stop, max_new_tokens: defaults of its generation.
        own_items: it can bring its items itself, so that neither `data` nor `items` is needed.

    """

    summary: str
    fields: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32
    own_items: bool = False


KINDS: dict[str, Kind] = {
    "multiple_choice": Kind(
        "log-likelihood of each choice after the prompt; acc or acc_norm (per byte)",
        ("prompt", "choices", "answer"),
        ("acc", "acc_norm"),
    ),
    "exact_match": Kind(
        "greedy generation up to a stop string, compared with the answer", ("prompt", "answer"), ("exact_match",)
    ),
    "perplexity": Kind(
        "bits per byte of documents (after a prompt, where there is one); item score 2 ** -bits",
        ("text",),
        ("bits_per_byte",),
        optional=("prompt",),
    ),
    "code": Kind(
        "greedy generation of code, run against unit tests in a sandbox (needs EVOMERGE_ALLOW_CODE=true)",
        ("prompt", "tests"),
        ("pass@1",),
        options={"timeout": 5.0, "memory_mb": 512},
        stop=CODE_STOPS,
        max_new_tokens=256,
    ),
    "classification": Kind(
        "the likeliest of the labels after the text, zero-shot",
        ("text", "label"),
        ("acc", "acc_norm"),
        options={"labels": (), "template": "{text}\nLabel:"},
    ),
    "qa": Kind(
        "greedy answer to a question, by SQuAD's normalised exact match and token F1 with the best of the answers",
        ("question", "answers"),
        ("f1", "exact_match"),
        optional=("context",),
    ),
    "writing": Kind(
        "bits per byte of a good text after its prompt; the prompt is not scored",
        ("prompt", "text"),
        ("bits_per_byte",),
    ),
    "coherence": Kind(
        "a text's sentences in their own order against shuffled orders", ("text",), ("acc_norm", "acc")
    ),
    "instruction_following": Kind(
        f"greedy answer, checked by rules: {', '.join(CHECKS)}",
        ("prompt", "checks"),
        ("instruction_acc", "prompt_acc"),
        stop=(),
        max_new_tokens=128,
    ),
    "lm_eval": Kind(
        "a task of EleutherAI's lm-evaluation-harness by name, or of a local task folder (needs the extra lm-eval)",
        ("document",),
        options={"task": None, "folder": "", "num_fewshot": -1, "filter": "", "requests": "", "split": ""},
        own_items=True,
    ),
    "plugin": Kind(
        "a task of your own: an entry point of the group evomerge.tasks",
        (),
        options={"plugin": None, "options": {}},
        own_items=True,
    ),
    "efficiency": Kind(
        "what the model costs; score 1/2 at `reference`: tokens_per_second, parameters or bytes",
        (),
        ("tokens_per_second", "parameters", "bytes"),
        options={"reference": None},
        own_items=True,
    ),
}  # fmt: skip
MASKED_NEVER = frozenset(("exact_match", "qa", "code", "instruction_following"))
"""Kinds that continue a text, which a masked language model cannot."""


def read_options(kind: str, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The kind's own keys of a task, defaults filled in.

    Raises:
        SuiteError: one is missing, or of another type than its default.

    """
    found: dict[str, Any] = {}
    for key, default in KINDS[kind].options.items():
        value = data.get(key, default)
        if value is None:
            raise SuiteError(f"a task of kind {kind} needs `{key}`", (*path, key))
        if isinstance(default, tuple):
            if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
                raise SuiteError("must be a list of words", (*path, key))
            value = tuple(value)
        elif isinstance(default, int | float):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SuiteError(f"must be a number, not {value!r}", (*path, key))
            value = type(default)(value)
        elif isinstance(default, Mapping) != isinstance(value, Mapping) or (
            isinstance(default, str) and not isinstance(value, str)
        ):
            raise SuiteError(f"cannot be {value!r}", (*path, key))
        found[key] = value
    _check_options(kind, found, path)
    return found


def _check_options(kind: str, options: dict[str, Any], path: Path) -> None:
    if kind == "efficiency":
        value = options["reference"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
            raise SuiteError(f"must be a number above zero, not {value!r}", (*path, "reference"))
        options["reference"] = float(value)
    elif kind in ("lm_eval", "plugin"):
        key = "task" if kind == "lm_eval" else "plugin"
        if not isinstance(options[key], str) or not options[key]:
            raise SuiteError(f"must be a name, not {options[key]!r}", (*path, key))
    elif kind == "code" and not (0 < options["timeout"] <= 600 and 64 <= options["memory_mb"] <= 65536):
        raise SuiteError("`timeout` must be at most 600 seconds and `memory_mb` from 64 to 65536", path)
    elif kind == "classification" and "{text}" not in options["template"]:
        raise SuiteError("must have {text} where the text goes", (*path, "template"))


def check_item(kind: str, content: Content, path: Path) -> None:
    """Whether an item of this kind can be asked. The fields that it needs are there already.

    Raises:
        SuiteError: names the field.

    """
    for key in ("prompt", "text", "label", "question", "context", "tests", "document"):
        if key in content and not isinstance(content[key], str):
            raise SuiteError(f"{key!r} must be text", (*path, key))
    for key in ("text", "label", "question", "tests"):
        if content.get(key) == "" or (key in content and kind != "perplexity" and not content[key].strip()):
            raise SuiteError(f"`{key}` is empty", (*path, key))
    check = _ITEM_CHECKS.get(kind)
    if check is not None:
        check(content, path)


def _check_choices(content: Content, path: Path) -> None:
    choices, answer = content["choices"], content["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise SuiteError("`choices` must be two or more texts, none empty", (*path, "choices"))
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise SuiteError(f"`answer` must be the index of a choice, 0 to {len(choices) - 1}", (*path, "answer"))


def _check_answer(content: Content, path: Path) -> None:
    if not isinstance(content["answer"], str) or not content["answer"]:
        raise SuiteError("`answer` must be text and not empty", (*path, "answer"))


def _check_answers(content: Content, path: Path) -> None:
    answers = content["answers"]
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise SuiteError("`answers` must be a text or a list of texts, none empty", (*path, "answers"))


def _check_sentences(content: Content, path: Path) -> None:
    count = len(sentences(content["text"]))
    if count < 3:
        raise SuiteError(f"coherence needs texts of at least three sentences; this one has {count}", (*path, "text"))


_ITEM_CHECKS: dict[str, Callable[[Content, Path], None]] = {
    "multiple_choice": _check_choices,
    "exact_match": _check_answer,
    "qa": _check_answers,
    "coherence": _check_sentences,
    "instruction_following": lambda content, path: check_checks(content["checks"], (*path, "checks")),
}


def check_labels(labels: Sequence[str], contents: Sequence[Content], path: Path) -> None:
    """Whether a classification task can be asked.

    Raises:
        SuiteError: an item's label is none of `labels`, or all items have the same.

    """
    known = labels or sorted({content["label"] for content in contents})
    if len(known) < 2:
        raise SuiteError("a classification needs two labels or more", (*path, "labels"))
    for index, content in enumerate(contents):
        if content["label"] not in known:
            raise SuiteError(
                f"unknown label {content['label']!r}; {did_you_mean(content['label'], known)}",
                (*path, "items", index, "label"),
            )


def lower(kind: str, options: Mapping[str, Any], content: Content, labels: Sequence[str]) -> Content:
    """A composed kind's item as one of its basic kind (see LOWERED); others stay as they are.

    Args:
        kind: of the task.
        options: of the task.
        content: of the item.
        labels: of a classification: every label that the task knows.

    """
    if kind == "classification":
        prompt = options["template"].replace("{text}", content["text"])
        space = "" if prompt[-1:].isspace() else " "
        choices = [space + label for label in labels]
        return {"prompt": prompt, "choices": choices, "answer": list(labels).index(content["label"])}
    if kind == "qa":
        context = f"{content['context'].strip()}\n\n" if content.get("context") else ""
        answers = content["answers"]
        prompt = f"{context}Question: {content['question'].strip()}\nAnswer:"
        return {"prompt": prompt, "answers": [answers] if isinstance(answers, str) else list(answers)}
    if kind == "coherence":
        return _orders(content["text"])
    return content


LOWERED = {"classification": "multiple_choice", "coherence": "multiple_choice", "writing": "perplexity"}
"""Composed kind → the basic kind whose scoring it shares."""


def sentences(text: str) -> list[str]:
    """A text cut after each full stop, question or exclamation mark."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def _orders(text: str) -> Content:
    """The first sentence as the prompt; the rest in order, and shuffled, as the choices.

    Telling a text from its permutations is the discrimination test of Barzilay & Lapata (Modeling Local Coherence,
    2008). All choices have the same bytes. The text itself decides the shuffles and the place of the right one.
    """
    first, *rest = sentences(text)
    generator = random.Random(hashlib.sha256(text.encode()).digest())
    orders: list[str] = []
    right = " ".join(rest)
    for _ in range(50):
        shuffled = " ".join(generator.sample(rest, len(rest)))
        if shuffled != right and shuffled not in orders:
            orders.append(shuffled)
        if len(orders) == SHUFFLES:
            break
    place = generator.randrange(len(orders) + 1)
    orders.insert(place, right)
    return {"prompt": first, "choices": [" " + order for order in orders], "answer": place}
