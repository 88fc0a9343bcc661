"""Texts that a client may send to do harm, or by mistake: deep, large, unfolding, or of no use."""

from __future__ import annotations

import json

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {a: 1, b: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)
TEXTS = {
    "brackets": "[" * 50_000,
    "braces": "{a: " * 50_000,
    "braces of JSON": '{"a":' * 50_000,
    "brackets that are closed": "[" * 5_000 + "]" * 5_000,
    "dashes": "- " * 50_000,
    "question marks": "? " * 50_000,
    "twenty megabytes of entries": "- a\n" * 5_000_000,
    "a megabyte of entries": "- a\n" * 250_000,
    "ten million numbers": "[" + "1," * 10_000_000 + "1]",
    "a billion laughs": LAUGHS,
    "a billion laughs by merging": MERGES,
    "a long text many times": "a: &a " + "x" * 500_000 + "\nb: [" + "*a, " * 50_000 + "]",
    "a list of itself": "a: &a [*a]\n",
    "a mapping of itself": "&a\n<<: *a\n",
    "a huge text": "a: " + "x" * 900_000,
    "a huge key": "x" * 900_000 + ": 1",
    "a huge key of JSON": json.dumps({"x" * 20_000_000: 1}),
    "a huge word": json.dumps({"models": ["a", "b"], "search": {"strategy": "é" * 5_000_000}, "suite": {}}),
    "a number of many digits": "seed: " + "9" * 100_000,
    "many tags": "".join(f"%TAG !a{n}! x{n}\n" for n in range(40_000)),
    "many documents": "---\n" * 250_000,
    "a NUL": "models: [a\0b, c]",
    "a NUL of JSON": json.dumps({"models": ["a\0b", "c"], "suite": {"tasks": []}}),
    "a NUL in a recipe": '{"merge_method": "linear", "models": [{"model": "a\\u0000b", "parameters": {"weight": 1}}]}',
    "half a pair": '{"models": ["\\ud800", "b"], "suite": {}}',
    "controls": "a: \x07\x1b",
    "a tag of Python": "!!python/object/apply:os.system [true]",
    "nothing": "",
    "a word": "hello",
    "a number": "1",
    "lists for words": '{"models": [["a"], {"b": 1}], "suite": [], "method": [], "slices": {}, "merge_method": [1]}',
    "lists for mappings": '{"models": [], "suite": {"tasks": [[]]}, "search": [1], "tasks": [[1]], "method": "ties"}',
}  # fmt: skip
"""What it is → the text. None of them is a spec, a suite or a recipe."""
