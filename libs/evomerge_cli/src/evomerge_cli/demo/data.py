"""The demo family's data: three small tasks, each with training rows and held-out suite items.

Nothing is downloaded. Arithmetic and sentiment come from small grammars; Python code comes from the source of
the standard library of the interpreter that runs this (or from a grammar where there is no source to read).
No suite item is ever a training row: pairs of operands, pairs of (thing, adjective) and whole source files are
held out before any training row is drawn.
"""

from __future__ import annotations

import itertools
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARITHMETIC_ITEMS = 160
SENTIMENT_ITEMS = 160
PYTHON_ITEMS = 72

LABELS = (" terrible", " poor", " good", " excellent")

MIN_DOCUMENT_CHARS = 180
MAX_DOCUMENT_CHARS = 300
MAX_TRAINING_DOCUMENTS = 6_000


@dataclass(frozen=True)
class Row:
    """One training row: the model reads ``prompt + answer`` and is taught ``answer`` (all of it if no prompt)."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class TaskData:
    """One task: the rows its expert and the base train on, and the suite items (the JSONL file's objects)."""

    name: str
    rows: tuple[Row, ...]
    base_rows: tuple[Row, ...]
    items: tuple[dict[str, Any], ...]


def build_data(seed: int) -> tuple[TaskData, TaskData, TaskData]:
    """Makes arithmetic, sentiment and python, in this order; the same seed gives the same data."""
    return arithmetic(seed), sentiment(seed), python_code(seed)


# --------------------------------------------------------------------------------------------- arithmetic


_PLUS = (
    "{a} + {b} =", "{a} plus {b} is", "What is {a} plus {b}? It is", "Add {a} and {b}:", "The sum of {a} and {b} is",
    "{a} and {b} make",
)  # fmt: skip
_MINUS = (
    "{a} - {b} =", "{a} minus {b} is", "What is {a} minus {b}? It is", "Take {b} from {a}:",
    "The difference of {a} and {b} is", "{a} less {b} leaves",
)  # fmt: skip


def arithmetic(seed: int) -> TaskData:
    """Makes sums and differences of one-digit numbers, each asked in six ways.

    A way of asking a fact is either trained on or asked in the suite, never both; so the suite asks known facts in
    words in which they have not been asked before. The base learns those with a small first number.
    """
    rng = random.Random(f"arithmetic:{seed}")
    asked = [
        (a, form.format(a=a, b=b), a + sign * b)
        for a, b in itertools.product(range(10), repeat=2)
        for sign, forms in ((1, _PLUS), (-1, _MINUS))
        for form in forms
        if a + sign * b >= 0
    ]
    rng.shuffle(asked)
    items = tuple(
        {"id": f"arithmetic-{number:03d}", "prompt": prompt, "answer": f" {answer}"}
        for number, (_, prompt, answer) in enumerate(asked[:ARITHMETIC_ITEMS])
    )
    rows = [(a, Row(prompt, f" {answer}")) for a, prompt, answer in asked[ARITHMETIC_ITEMS:]]
    return TaskData("arithmetic", tuple(r for _, r in rows), tuple(r for a, r in rows if a < 3), items)


# ---------------------------------------------------------------------------------------------- sentiment

_THINGS = (
    "the pasta", "the soup", "the bread", "the coffee", "the dessert", "the waiter", "the service", "the menu",
    "the room", "the bed", "the view", "the lobby", "the pool", "the breakfast", "the staff", "the garden",
    "the film", "the plot", "the acting", "the music", "the ending", "the dialogue", "the camera work",
    "the phone", "the screen", "the battery", "the keyboard", "the speaker", "the charger", "the manual",
    "the train", "the driver", "the ticket office", "the museum", "the guide", "the concert", "the course",
    "the teacher", "the book", "the shop",
)  # fmt: skip
_ADJECTIVES = (
    ("dreadful", "awful", "horrible", "disgusting", "appalling", "hopeless", "atrocious", "miserable"),
    ("dull", "weak", "bland", "tired", "mediocre", "clumsy", "shabby", "slow"),
    ("nice", "pleasant", "decent", "solid", "fine", "likeable", "tidy", "fresh"),
    ("superb", "brilliant", "wonderful", "amazing", "stunning", "perfect", "fantastic", "marvellous"),
)  # fmt: skip
_OPENINGS = ("", "", "I found that ", "To be honest, ", "As everyone said, ", "We all agreed that ", "This time ")
_ADVERBS = ("", "", "quite ", "really ", "simply ", "once again ", "as always ")


def sentiment(seed: int) -> TaskData:
    """Makes short reviews to be given one of four labels, from terrible to excellent.

    The last clause decides; "not" turns its sense round and makes it mild. Each (thing, adjective) pair of the
    deciding clause is used either for training or for the suite, never for both.
    """
    rng = random.Random(f"sentiment:{seed}")
    pairs = [(thing, word, level) for thing in _THINGS for level, words in enumerate(_ADJECTIVES) for word in words]
    rng.shuffle(pairs)
    held_out, training = pairs[: len(pairs) // 5], pairs[len(pairs) // 5 :]
    seen: set[str] = set()
    items: list[dict[str, Any]] = []
    while len(items) < SENTIMENT_ITEMS:
        prompt, label = _review(rng, *held_out[len(items) % len(held_out)])
        if prompt in seen:
            continue
        seen.add(prompt)
        items.append({"id": f"sentiment-{len(items):03d}", "prompt": prompt, "choices": list(LABELS), "answer": label})
    rows: list[Row] = []
    easy: list[Row] = []
    for _ in range(6):
        for pair in training:
            for plain, where in ((False, rows), (True, easy)):
                prompt, label = _review(rng, *pair, plain=plain)
                if prompt not in seen:
                    seen.add(prompt)
                    where.append(Row(prompt, LABELS[label]))
    rng.shuffle(rows)
    rng.shuffle(easy)
    return TaskData("sentiment", tuple(rows), (*easy, *rows[: len(rows) // 10]), tuple(items))


def _review(rng: random.Random, thing: str, adjective: str, level: int, *, plain: bool = False) -> tuple[str, int]:
    """A review whose deciding clause is about ``thing``, and the index of its label."""
    negated = not plain and rng.random() < 0.35
    clause = f"{thing} was {'not ' if negated else ''}{rng.choice(_ADVERBS)}{adjective}"
    if not plain and rng.random() < 0.4:
        first = f"{rng.choice(_THINGS)} was {rng.choice(rng.choice(_ADJECTIVES))}"
        clause = f"{first}, but {clause}"
    text = rng.choice(_OPENINGS) + clause
    label = level if not negated else (2 if level < 2 else 1)
    return f"Review: {text[0].upper()}{text[1:]}.\nVerdict:", label


# ------------------------------------------------------------------------------------------------- python


def python_code(seed: int) -> TaskData:
    """Cuts short pieces of Python source. Files, not pieces, are held out."""
    rng = random.Random(f"python:{seed}")
    files = list(standard_library())
    if sum(map(len, files)) < 1_000_000:  # a zipped or stripped standard library
        files = [_generated_module(random.Random(f"module:{number}")) for number in range(800)]
    rng.shuffle(files)
    count = len(files) // 6
    held_out = [piece for source in files[:count] for piece in _pieces(source)]
    seen = {_squeezed(piece) for piece in held_out}
    chosen = rng.sample(sorted(set(held_out)), PYTHON_ITEMS)
    items = [{"id": f"python-{number:03d}", "text": text} for number, text in enumerate(chosen)]
    rows: list[Row] = []
    for piece in (piece for source in files[count:] for piece in _pieces(source)):
        if _squeezed(piece) not in seen:
            seen.add(_squeezed(piece))
            rows.append(Row("", piece))
    rng.shuffle(rows)
    rows = rows[:MAX_TRAINING_DOCUMENTS]
    return TaskData("python", tuple(rows), tuple(rows), tuple(items))


def standard_library() -> Iterator[str]:
    """Reads the ASCII sources of the standard library's top-level modules and plain packages, by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = list(root.glob("*.py"))
    for package in ("asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json",
                    "logging", "multiprocessing", "unittest", "urllib", "wsgiref", "xml"):  # fmt: skip
        paths += (root / package).glob("**/*.py")
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        try:
            text = path.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            continue
        yield text


def _pieces(source: str) -> list[str]:
    """Cuts a source into pieces of whole lines, each of MIN…MAX_DOCUMENT_CHARS, started where a def or class is."""
    pieces = []
    piece = ""
    for line in source.splitlines(keepends=True):
        starts_block = line.lstrip().startswith(("def ", "class ", "@", "async def "))
        if len(piece) + len(line) > MAX_DOCUMENT_CHARS or (starts_block and len(piece) >= MIN_DOCUMENT_CHARS):
            if MIN_DOCUMENT_CHARS <= len(piece) <= MAX_DOCUMENT_CHARS:
                pieces.append(piece)
            piece = ""
        if piece or line.strip():
            piece += line
    return pieces


def _squeezed(text: str) -> str:
    """The text without white space, by which duplicates are known."""
    return "".join(text.split())


_NOUNS = ("item", "value", "name", "path", "line", "node", "key", "entry", "token", "field", "record", "user")
_VERBS = ("get", "set", "find", "load", "parse", "check", "add", "remove", "update", "count", "write", "read")


def _generated_module(rng: random.Random) -> str:
    """A module of small methods, for installations without the standard library's source."""
    lines = []
    for _ in range(12):
        noun, other, verb = rng.choice(_NOUNS), rng.choice(_NOUNS), rng.choice(_VERBS)
        lines.append(f"def {verb}_{noun}(self, {noun}, {other}=None):\n")
        lines.append(f'    """{verb.title()} the {noun} of this {rng.choice(_NOUNS)}."""\n')
        if rng.random() < 0.5:
            lines.append(f"    if {other} is None:\n        {other} = self.{rng.choice(_NOUNS)}\n")
        if rng.random() < 0.5:
            lines.append(f"    for {other} in self.{noun}s:\n        self.{rng.choice(_VERBS)}({other})\n")
        lines.append(f"    return {rng.choice((noun, other, f'len({noun})', f'self.{noun}'))}\n\n")
    return "".join(lines)
