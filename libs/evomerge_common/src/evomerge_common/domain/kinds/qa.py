"""qa: a question answered in words (SQuAD's metrics; Rajpurkar et al. 2016, arXiv:1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from evomerge_common.domain.kinds.exact_match import Generation, extracted, spaced
from evomerge_common.domain.kinds.kind import IMAGE
from evomerge_common.domain.task import Content, Item, Task
from evomerge_common.errors import Path, SuiteError


class QuestionAnswering(Generation):
    """An item is a question, its right answers, and what may stand before it."""

    name = "qa"
    summary = "greedy answer to a question, by SQuAD's normalised exact match and token F1 with the best of the answers"
    fields = ("question", "answers")
    optional = ("context", IMAGE)
    texts = ("question", "context")
    filled = ("question",)
    metrics = ("f1", "exact_match")

    def check_item(self, content: Content, path: Path) -> None:
        """Refuses an item without a right answer."""
        answers = content["answers"]
        if isinstance(answers, str):
            answers = [answers]
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            raise SuiteError("`answers` must be a text or a list of texts, none empty", (*path, "answers"))

    def contents(self, task: Task, items: Sequence[Item]) -> list[Content]:
        """Makes each item a prompt, with a list of answers."""
        return [_question(item.content) for item in items]

    def score(self, task: Task, content: Content, answers: Sequence[Any]) -> float:
        """Judges the answer, see `judge_answer`."""
        return judge_answer(extracted(answers[0], task.extract) or "", content["answers"], task.metric)

    def right_answers(self, task: Task, content: Content) -> Sequence[str]:
        """Returns all of the right answers, with a space before them and without."""
        return spaced(content["prompt"], content["answers"])


def _question(content: Content) -> Content:
    context = f"{content['context'].strip()}\n\n" if content.get("context") else ""
    answers = content["answers"]
    prompt = f"{context}Question: {content['question'].strip()}\nAnswer:"
    shown = {IMAGE: content[IMAGE]} if IMAGE in content else {}
    return {"prompt": prompt, "answers": [answers] if isinstance(answers, str) else list(answers), **shown}


def normalised(answer: str) -> str:
    """Puts a text in lower case, without punctuation, articles and needless spaces, as SQuAD's evaluation does it."""
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_f1(answer: str, truth: str) -> float:
    """Returns the harmonic mean of precision and recall over normalised words."""
    found, wanted = normalised(answer).split(), normalised(truth).split()
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def judge_answer(answer: str, truths: Sequence[str], metric: str) -> float:
    """Returns SQuAD's exact_match or f1 with the best of the right answers, 0 to 1."""
    if metric == "f1":
        return max(token_f1(answer, truth) for truth in truths)
    return float(any(normalised(answer) == normalised(truth) for truth in truths))


KIND = QuestionAnswering()
