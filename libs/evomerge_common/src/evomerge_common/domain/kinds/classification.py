"""classification: the likeliest label of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evomerge_common.domain.kinds.multiple_choice import MultipleChoice
from evomerge_common.domain.task import Content, Item, Task
from evomerge_common.errors import Path, SuiteError, did_you_mean


class Classification(MultipleChoice):
    """An item is a text and its label; it is asked as a multiple choice between all labels."""

    name = "classification"
    summary = "the likeliest of the labels after the text, zero-shot"
    fields = ("text", "label")
    optional = ()
    texts = ("text", "label")
    filled = ("text", "label")
    options: ClassVar[Mapping[str, Any]] = {"labels": (), "template": "{text}\nLabel:"}

    def read_options(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Refuses a template without a place for the text."""
        options = super().read_options(data, path)
        if "{text}" not in options["template"]:
            raise SuiteError("must have {text} where the text goes", (*path, "template"))
        return options

    def check_item(self, content: Content, path: Path) -> None:
        """Checks nothing more: a text and a label."""

    def check_task(self, task: Task, path: Path) -> None:
        """Refuses a task with one label alone, and a label that is none of `labels`."""
        labels = labels_of(task)
        if len(labels) < 2:
            raise SuiteError("a classification needs two labels or more", (*path, "labels"))
        for index, item in enumerate(task.items):
            label = item.content["label"]
            if label not in labels:
                place = (*path, "items", index, "label")
                raise SuiteError(f"unknown label {label!r}; {did_you_mean(label, labels)}", place)

    def contents(self, task: Task, items: Sequence[Item]) -> list[Content]:
        """Puts each text in the template, with the labels as choices."""
        labels = labels_of(task)
        return [_question(task.options["template"], item.content, labels) for item in items]

    def depends_on(self, task: Task) -> Mapping[str, Any]:
        """Returns the labels, which may follow from the items."""
        return {"labels": sorted({str(item.content.get("label")) for item in task.items})}


def labels_of(task: Task) -> Sequence[str]:
    """Returns the labels that a task knows: its own list, else those of its items."""
    return task.options["labels"] or sorted({item.content["label"] for item in task.items})


def _question(template: str, content: Content, labels: Sequence[str]) -> Content:
    prompt = template.replace("{text}", content["text"])
    space = "" if prompt[-1:].isspace() else " "
    choices = [space + label for label in labels]
    return {"prompt": prompt, "choices": choices, "answer": list(labels).index(content["label"])}


KIND = Classification()
