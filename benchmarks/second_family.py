"""A second family for the searches, which no setting was tuned on: four skills, three experts, another architecture.

A qwen2 (grouped heads, biases) of six layers learns four small made-up skills a little; three experts go on with one
skill each and see some of the base's rows of the others again, and nobody goes on with the fourth, which merges may
keep or lose. It was made such that sums of the task vectors are better than each source, by plain task arithmetic with
one weight for all; no search was ever looked at. All items are four-choice ones whose difficulty
is graded: by how often a fact was told, how long a phrase is, how many numbers are compared, how long a pattern's
period is. No suite item is a training row.

    evomerge bench second_family --out FOLDER    # makes it (once), and scores its sources
    evomerge bench search --real --family FOLDER --data real.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evomerge_cli.console import Console
from evomerge_cli.demo.data import Row, TaskData
from evomerge_cli.demo.family import Family, Plan, Schedule, build_family
from evomerge_common.runtime.suite_file import load_suite

ITEMS = {"facts": 168, "lexicon": 144, "compare": 144, "patterns": 120}
"""Suite items of each task; six in ten are the search's."""
GRADES = 4
HIDDEN, LAYERS, HEADS, KV_HEADS, MLP = 128, 6, 4, 2, 320

SUITE = """\
name: second family
tasks:
  - {name: facts, kind: multiple_choice, data: facts.jsonl}
  - {name: lexicon, kind: multiple_choice, data: lexicon.jsonl}
  - {name: compare, kind: multiple_choice, data: compare.jsonl}
  - {name: patterns, kind: multiple_choice, data: patterns.jsonl}
holdout: 0.4
"""


def build_second_family(folder: Path, *, seed: int = 0, progress: Callable[[str, float], None] | None = None) -> Family:
    """Makes the family in `folder`, or finds it there; experts in the order facts, lexicon, compare."""
    return build_family(folder, seed=seed, progress=progress, plan=SECOND)


def _qwen2(tokenizer: Any, seed: int) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


# ---- the four skills ----


def build_data(seed: int) -> Sequence[TaskData]:
    """Makes facts, lexicon, compare and patterns; the same seed gives the same data."""
    return facts(seed), lexicon(seed), compare(seed), patterns(seed)


def _item(rng: random.Random, prompt: str, right: str, wrong: Sequence[str]) -> dict[str, Any]:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"prompt": prompt, "choices": choices, "answer": choices.index(right)}


def _numbered(name: str, items: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple({"id": f"{name}-{number:03d}", **item} for number, item in enumerate(items))


_SYLLABLES = ("ba", "do", "fi", "gu", "ka", "le", "mo", "nu", "pe", "ri", "so", "ta", "vi", "wo", "xa", "zu")
_ASKED = {
    "home": ("{who} lives in", "The home of {who} is", "You will find {who} in", "{who} was born and still lives in",
             "Letters to {who} go to"),
    "trade": ("{who} works as a", "The trade of {who} is that of a", "By trade, {who} is a",
              "{who} earns a living as a", "All know {who} as a"),
    "pet": ("{who} keeps a", "The pet of {who} is a", "At home, {who} has a", "{who} takes care of a",
            "The animal that {who} loves is a"),
}  # fmt: skip
_VALUES = {
    "home": ("Oslo", "Lima", "Cairo", "Delhi", "Paris", "Tokyo", "Quito", "Riga", "Bern", "Accra"),
    "trade": ("baker", "smith", "tailor", "miner", "singer", "sailor", "farmer", "painter", "judge", "nurse"),
    "pet": ("goat", "horse", "parrot", "snake", "rabbit", "donkey", "hamster", "lizard", "goose", "pony"),
}


def facts(seed: int) -> TaskData:
    """Makes facts about invented people; of each, two ways of asking are for the suite.

    The grade of a person says how often the others are told: rows once, twice, three and four times. The base learns
    the people of every third name.
    """
    rng = random.Random(f"facts:{seed}")
    names = rng.sample([a + b + c for a, b, c in itertools.product(_SYLLABLES, repeat=3)], 32)
    rows: list[Row] = []
    base_rows: list[Row] = []
    items = []
    for number, name in enumerate(names):
        who = name.capitalize()
        for kind, values in _VALUES.items():
            value = rng.choice(values)
            forms = rng.sample(_ASKED[kind], len(_ASKED[kind]))
            for form in forms[:2]:
                wrong = rng.sample([other for other in values if other != value], 3)
                items.append(_item(rng, form.format(who=who), f" {value}", [f" {other}" for other in wrong]))
            told = [Row(form.format(who=who), f" {value}") for form in forms[2:]]
            rows += told * (1 + number % GRADES)
            base_rows += told if number % 3 == 0 else []
    rng.shuffle(items)
    return TaskData("facts", tuple(rows), tuple(base_rows), _numbered("facts", items[: ITEMS["facts"]]))


_ENGLISH = (
    "red", "old", "big", "wet", "shy", "fox", "cat", "dog", "hen", "owl", "sees", "eats", "finds", "likes", "hides",
    "salt", "corn", "milk", "fish", "rice",
)  # fmt: skip


def lexicon(seed: int) -> TaskData:
    """Makes phrases of an invented language, to be put into English word by word; the grade is the phrase's length.

    The wrong choices differ in one word. The base learns single words and pairs.
    """
    rng = random.Random(f"lexicon:{seed}")
    foreign = rng.sample([a + b for a, b in itertools.product(_SYLLABLES, repeat=2)], len(_ENGLISH))
    known = dict(zip(_ENGLISH, foreign, strict=True))
    held_out: set[tuple[str, ...]] = set()

    def phrase(length: int, words: Sequence[str]) -> tuple[str, ...]:
        while (chosen := tuple(rng.sample(words, length))) in held_out:
            pass
        return chosen

    def asked(words: Sequence[str]) -> str:
        return f"Put into English: {' '.join(known[word] for word in words)}\nEnglish:"

    items = []
    for number in range(ITEMS["lexicon"]):
        words = phrase(2 + number % GRADES, _ENGLISH)
        held_out.add(words)
        wrong: set[str] = set()
        while len(wrong) < 3:
            place = rng.randrange(len(words))
            other = rng.choice([word for word in _ENGLISH if word not in words])
            wrong.add(" " + " ".join((*words[:place], other, *words[place + 1 :])))
        items.append(_item(rng, asked(words), " " + " ".join(words), sorted(wrong)))
    rows = [_translation(asked, phrase(1 + number % 4, _ENGLISH)) for number in range(2400)]
    base_rows = [_translation(asked, phrase(1 + number % 2, _ENGLISH)) for number in range(400)]
    return TaskData("lexicon", tuple(rows), tuple(base_rows), _numbered("lexicon", items))


def _translation(asked: Callable[[Sequence[str]], str], words: Sequence[str]) -> Row:
    return Row(asked(words), " " + " ".join(words))


def compare(seed: int) -> TaskData:
    """Makes lists of numbers whose largest or smallest is asked for; the grade is the list's length, four to seven.

    The base learns lists of one-digit numbers, and of three.
    """
    rng = random.Random(f"compare:{seed}")
    seen: set[str] = set()

    def asked(length: int, limit: int) -> tuple[str, int, list[int]]:
        while True:
            numbers = rng.sample(range(limit), length)
            which = rng.choice(("Largest", "Smallest"))
            prompt = f"{which} of {', '.join(map(str, numbers))}:"
            if prompt not in seen:
                seen.add(prompt)
                return prompt, max(numbers) if which == "Largest" else min(numbers), numbers

    items = []
    for number in range(ITEMS["compare"]):
        prompt, answer, numbers = asked(4 + number % GRADES, 100)
        wrong = rng.sample([one for one in numbers if one != answer], 3)
        items.append(_item(rng, prompt, f" {answer}", [f" {one}" for one in wrong]))
    rows = [Row(prompt, f" {answer}") for prompt, answer, _ in (asked(3 + n % 4, 100) for n in range(4000))]
    base_rows = [Row(prompt, f" {answer}") for prompt, answer, _ in (asked(3, 10 + 5 * (n % 3)) for n in range(800))]
    return TaskData("compare", tuple(rows), tuple(base_rows), _numbered("compare", items))


def patterns(seed: int) -> TaskData:
    """Makes letters in a pattern that goes on; the grade is its period, two to five. Only the base learns it."""
    rng = random.Random(f"patterns:{seed}")
    letters = "abcdefghijkmnpqrstuvwxyz"
    seen: set[str] = set()

    def asked(period: int) -> tuple[str, str, list[str]]:
        while True:
            cycle = rng.sample(letters, period)
            length = 2 * period + rng.randrange(period)
            text = " ".join(cycle[place % period] for place in range(length))
            if text not in seen:
                seen.add(text)
                return f"Go on: {text}", cycle[length % period], cycle

    items = []
    for number in range(ITEMS["patterns"]):
        prompt, answer, cycle = asked(2 + number % GRADES)
        others = [one for one in cycle if one != answer]
        more = rng.sample([one for one in letters if one not in cycle], 3)
        items.append(_item(rng, prompt, f" {answer}", [f" {one}" for one in [*others, *more][:3]]))
    rows = tuple(Row(prompt, f" {answer}") for prompt, answer, _ in (asked(2 + n % GRADES) for n in range(3000)))
    return TaskData("patterns", rows, rows, _numbered("patterns", items))


SECOND = Plan(
    version="2",
    suite=SUITE,
    tasks=build_data,
    model=_qwen2,
    base_rows={"patterns": (24, 1), "compare": (24, 2), "facts": (16, 2), "lexicon": (24, 2)},
    base_steps=260,
    base_rate=0.02,
    base_adam=5e-3,
    experts={
        "facts": Schedule(80, 0.007, 32, (("patterns", 16, 2), ("lexicon", 12, 2), ("compare", 12, 2))),
        "lexicon": Schedule(40, 0.007, 32, (("patterns", 16, 2), ("facts", 12, 2), ("compare", 12, 2))),
        "compare": Schedule(100, 0.007, 32, (("patterns", 16, 2), ("facts", 12, 2), ("lexicon", 12, 2))),
    },
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("second-family"), help="its folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    told = {"": ""}

    def progress(what: str, fraction: float) -> None:
        if what not in told:
            told[what] = what
            sys.stderr.write(f"{fraction:4.0%} {what}\n")

    family = build_second_family(args.out, seed=args.seed, progress=progress)
    console, suite = Console(), load_suite(family.suite)
    rows = []
    for folder in (family.base, *family.experts):
        scores = _scores(folder, suite)
        rows.append([folder.name, *(f"{score:.3f}" for score in scores), f"{sum(scores) / len(scores):.3f}"])
    console.table(["model", *(task.name for task in suite.tasks), "mean"], rows, title=f"All items; {family.suite}")
    return 0


def _scores(folder: Path, suite: Any) -> list[float]:
    from evomerge_scoring import ScoreRequest, child

    request = ScoreRequest(suite=suite, suite_digest="bench", split="all", threads=2)
    return [
        score.score for score in child.score(child.Candidate(folder=folder, recipe_json="", models={}), request).scores
    ]


if __name__ == "__main__":
    sys.exit(main())
