"""Suite files: what is read, and that every mistake names its file, line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import Item
from evomerge_common.errors import SpecError, SuiteError
from evomerge_common.runtime.documents import read_file, read_text
from evomerge_common.runtime.suite_file import inline_suite, load_suite

ARITHMETIC = [{"id": f"a{n}", "prompt": f"{n} + 1 =", "answer": f" {n + 1}"} for n in range(20)]


def write(folder: Path, suite: str, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, "utf-8")
    path = folder / "suite.yaml"
    path.write_text(suite, "utf-8")
    return path


def lines(items: list[dict[str, str]]) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def test_data_files_of_every_form_are_read_relative_to_the_suite(tmp_path: Path) -> None:
    documents = "\n\n".join(f"document {n}\nsecond line" for n in range(12)) + "\n\n\n"
    path = write(
        tmp_path,
        """
name: mine
holdout: 0.4
tasks:
  - {name: arithmetic, kind: exact_match, data: arithmetic.jsonl, weight: 2}
  - {name: labels, kind: multiple_choice, data: labels.json, limit: 15}
  - {name: text, kind: perplexity, data: text.txt}
""",
        arithmetic__jsonl="\n" + lines(ARITHMETIC),
        labels__json=json.dumps([{"prompt": f"p{n}", "choices": ["a", "b"], "answer": n % 2} for n in range(20)]),
        text__txt=documents,
    )
    suite = load_suite(path)
    assert [len(task.items) for task in suite.tasks] == [20, 15, 12]
    assert suite.tasks[0].weight == 2
    assert suite.tasks[0].items[3].id == "a3"
    assert suite.tasks[2].items[1].content["text"] == "document 1\nsecond line"
    assert suite.tasks[2].items[1].id == "4", "named by the line where it starts"
    assert Suite.from_json(suite.to_json()) == suite


def test_unknown_key_names_line_and_nearest_word(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """tasks:
  - name: a
    kind: exact_match
    data: arithmetic.jsonl
  - name: b
    # a comment
    knid: exact_match
""",
        arithmetic__jsonl=lines(ARITHMETIC),
    )
    with pytest.raises(SuiteError, match=r"suite\.yaml:7: tasks\[1\]\.knid: unknown key; did you mean 'kind'\?"):
        load_suite(path)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("tasks: []\n", r"suite\.yaml:1: tasks: a suite needs at least one task"),
        ("", r"suite\.yaml: the suite is empty"),
        ("\n- 1\n", r"suite\.yaml:2: expected keys and values"),
        ("tasks:\n  - name: a\n    name: b\n", r"suite\.yaml:3: tasks\[0\]\.name: key given twice \(first in line 2\)"),
        ("tasks:\n  - {name: a, kind: perplexity\nx: 1", r"suite\.yaml:\d: not YAML: "),
        ("tasks: !!python/object/apply:os.system [true]\n", r"suite\.yaml:1: tasks: the tag '.*os.system' is not read"),
        ("tasks: !!python/name:os.system\n", r"suite\.yaml:1: not YAML: could not determine a constructor"),
        ("tasks:\n- name: a\n  kind: exact_math\n  items: [1]",
         r"suite\.yaml:3: tasks\[0\]\.kind: .* did you mean 'exact_match'"),
        ("tasks:\n- name: a\n  kind: exact_match\n", r"suite\.yaml:2: tasks\[0\]\.items: task 'a' has no items"),
        ("tasks:\n- name: a\n  kind: exact_match\n  data: no.jsonl",
         r"suite\.yaml:4: tasks\[0\]\.data: .*no\.jsonl cannot be read: No such"),
        ("tasks:\n- name: a\n  kind: exact_match\n  data: [1]",
         r"suite\.yaml:4: tasks\[0\]\.data: .* must be the name of a file"),
        ("tasks:\n- name: a\n  kind: exact_match\n  items: []\n  data: b",
         r"suite\.yaml:5: tasks\[0\]\.data: give either"),
        ("batch_size: 0\ntasks:\n- {name: a, kind: exact_match, data: a.jsonl}",
         r"suite\.yaml:1: batch_size: must be a number"),
    ],
)  # fmt: skip
def test_mistakes_in_the_suite(tmp_path: Path, suite: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        load_suite(write(tmp_path, suite, a__jsonl=lines(ARITHMETIC)))


@pytest.mark.parametrize(
    ("name", "kind", "data", "message"),
    [
        ("d.jsonl", "exact_match", '{"prompt": "a", "answer": "b"}\n\n{"prompt": 1, "answer": "b"}\n',
         r"d\.jsonl:3: prompt: 'prompt' must be text"),
        ("d.jsonl", "exact_match", '{"prompt": "a", "answer": "b"}\n{"prompt": ', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", "multiple_choice", '{"prompt": "a", "choices": ["x", "y"], "answer": 2}', r"d\.jsonl:1: answer: "),
        ("d.jsonl", "exact_match", "[1]", r"d\.jsonl:1: an item must be an object"),
        ("d.json", "exact_match", '[{"prompt": "a"}]', r"d\.json: \[0\]: an item of exact_match needs 'answer'"),
        ("d.json", "exact_match", "{}", r"d\.json:1: expected a list"),
        ("d.json", "exact_match", "[\n1,\n", r"d\.json:3: not JSON"),
        ("d.txt", "perplexity", "ok\n\n" + "x" * 2_000_000, r"d\.txt:3: a document of 2000000 characters"),
        ("d.txt", "perplexity", "\n\n", r"suite\.yaml:3: tasks\[0\]\.items: task 'a' has no items"),
    ],
)  # fmt: skip
def test_mistakes_in_a_data_file_name_its_line(tmp_path: Path, name: str, kind: str, data: str, message: str) -> None:
    path = write(tmp_path, f"holdout: 0\ntasks:\n- {{name: a, kind: {kind}, data: {name}}}\n")
    (tmp_path / name).write_text(data)
    with pytest.raises(SuiteError, match=message) as caught:
        load_suite(path)
    assert caught.value.file


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks:\n- {name: a, kind: perplexity, data: d.txt}\n")
    (tmp_path / "d.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(SuiteError, match=r"d\.txt:2: not UTF-8"):
        load_suite(path)
    with pytest.raises(SuiteError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_suite(tmp_path / "nowhere.yaml")


def test_a_suite_inside_a_run_spec(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ARITHMETIC))
    document = read_text("suite:\n  tasks:\n  - {name: a, kind: exact_match, data: a.jsonl}\n", "run.yaml")
    data = document.data
    assert len(inline_suite(data["suite"], tmp_path).tasks[0].items) == 20
    data["suite"]["tasks"][0]["metric"] = "acc"
    with pytest.raises(SuiteError, match=r"run\.yaml:3: suite\.tasks\[0\]\.metric: "):
        inline_suite(data["suite"], tmp_path, document, path=("suite",))
    with pytest.raises(SuiteError, match=r"^suite\.tasks\[0\]\.metric: "):
        inline_suite(data["suite"], tmp_path, path=("suite",))


def test_yaml_lines(tmp_path: Path) -> None:
    document = read_text("# top\na: &x {b: 1}\nlist:\n  - 1\n  -\n    c: [2]\nd:\n  <<: *x\n  e: 2\n", "x.yaml")
    assert document.data == {"a": {"b": 1}, "list": [1, {"c": [2]}], "d": {"b": 1, "e": 2}}
    assert [document.line(p) for p in [(), ("a", "b"), ("list",), ("list", 0), ("list", 1, "c", 0), ("d", "e")]] == [
        2, 2, 3, 4, 6, 9,
    ]  # fmt: skip
    assert document.line(("list", 1, "missing", 3)) == 6
    located = document.located(SpecError("no", ("d", "f")))
    assert str(located) == "x.yaml:7: d.f: no"
    assert read_text("", "y.yaml").located(located) is located


def test_hostile_yaml_is_refused_quickly(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    for text in (laughs, "a: &a [*a]\n", "[" * 3000 + "]" * 3000, "? [1]\n: 2\n"):
        with pytest.raises(SpecError, match=r"too many values|nested too deeply|not YAML|must be a word"):
            read_text(text, "x.yaml")
    large = tmp_path / "large.yaml"
    large.write_text("a: " + "x" * 2_000_000)
    with pytest.raises(SpecError, match="bytes; at most"):
        read_file(large)


def test_duplicates_fall_into_the_same_split_whatever_their_id() -> None:
    items = [Item(str(n), {"prompt": f"p{n % 50}", "answer": "a"}) for n in range(500)]
    for seed in range(5):
        sides: dict[str, set[bool]] = {}
        for item in items:
            sides.setdefault(item.content["prompt"], set()).add(item.is_holdout(seed=seed, share=0.3))
        assert all(len(side) == 1 for side in sides.values())
        assert {True, False} == {side for pair in sides.values() for side in pair}
    many = [Item("", {"text": str(n)}) for n in range(4000)]
    share = sum(item.is_holdout(seed=1, share=0.3) for item in many) / len(many)
    assert abs(share - 0.3) < 0.03


def test_splits_part_the_items_and_keep_their_order() -> None:
    suite = inline_suite({"tasks": [{"name": "a", "kind": "exact_match", "items": ARITHMETIC}]}, Path())
    (task,) = suite.tasks
    search, holdout = suite.items(task, "search"), suite.items(task, "holdout")
    assert search
    assert holdout
    assert not {i.id for i in search} & {i.id for i in holdout}
    assert sorted((*search, *holdout), key=task.items.index) == list(task.items)
    assert [task.items.index(i) for i in search] == sorted(task.items.index(i) for i in search)
