"""Items that show an image: read safely, carried by the suite, and scored as transformers reads them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import ModelError, SuiteError
from evomerge_common.runtime import suite_images
from evomerge_common.runtime.suite_file import load_suite
from evomerge_merging import plan_merge
from evomerge_scoring import images, score_folder
from evomerge_scoring.asked import check_folder
from evomerge_scoring.images import data_url
from evomerge_scoring.kinds import prepare
from evomerge_scoring.kinds.requests import Requests
from evomerge_scoring.scorer import Scorer
from helpers.scoring import score, score_plan
from helpers.tiny_models import make
from helpers.tiny_vision import make_image, make_seeing

CHOICES = [" a b", " c", " the end"]
PROMPT = "what is it?"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def suite_file(folder: Path, items: list[Any], kind: str = "multiple_choice", **task: Any) -> Path:
    """A suite with a JSONL file of items in a folder of its own, `data`."""
    (folder / "data").mkdir(exist_ok=True, parents=True)
    (folder / "data" / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    path = folder / "suite.yaml"
    data = {"holdout": 0, "tasks": [{"name": "t", "kind": kind, "data": "data/items.jsonl", **task}]}
    path.write_text(json.dumps(data))
    return path


def choice(image: str = "one.png", **more: Any) -> dict[str, Any]:
    return {"image": image, "prompt": PROMPT, "choices": CHOICES, "answer": 0, **more}


def read(path: Path) -> Suite:
    return load_suite(path, embed=data_url)


def answers(folder: Path, suite: Suite) -> list[Any]:
    scorer = Scorer(device="cpu")
    model = scorer.resident.load_folder(folder)
    (task,) = suite.tasks
    prepared = prepare(task, task.items, scorer.encoder(model))
    assert isinstance(prepared, Requests)
    return prepared.encoded.answers(model, 4)


def shown(processor: Any, folder: Path, image: Path, text: str, *, chat: bool) -> dict[str, Any]:
    """What plain transformers code gives the model."""
    words: dict[str, Any] = {"add_special_tokens": False} if chat else {}
    pixels = Image.open(image).convert("RGB")
    return dict(processor(text=[text], images=[[pixels]], return_tensors="pt", **words))


def text_before(processor: Any, family: str, *, chat: bool) -> str:
    if not chat:
        return {"llava": "<image>", "gemma3": "<begin>"}[family] + PROMPT
    turn = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@pytest.mark.parametrize("chat", [False, True])
def test_items_with_an_image_score_as_in_transformers(family: str, chat: bool, tmp_path: Path) -> None:
    folder, image = make_seeing(tmp_path / "model", family), make_image(tmp_path / "data" / "one.png")
    plain = {key: value for key, value in choice().items() if key != "image"}
    found = answers(folder, read(suite_file(tmp_path, [choice(), plain], chat=chat)))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    before = text_before(processor, family, chat=chat)
    start = shown(processor, folder, image, before, chat=chat)["input_ids"].shape[1]
    for value, said in zip(found[0], CHOICES, strict=True):
        inputs = shown(processor, folder, image, before + said, chat=chat)
        with torch.no_grad():
            table = model(**inputs).logits[0].double().log_softmax(-1)
        ids = inputs["input_ids"][0].tolist()
        wanted = sum(float(table[place - 1, ids[place]]) for place in range(start, len(ids)))
        assert value == pytest.approx(wanted, abs=1e-4)
    assert found[0] != pytest.approx(found[1], abs=1e-2), "without the image it is another answer"
    (made,) = answers(folder, read(suite_file(tmp_path, [{"image": "one.png", "prompt": PROMPT, "answer": "x"}],
                                              "exact_match", chat=chat, max_new_tokens=6)))  # fmt: skip
    inputs = shown(processor, folder, image, before, chat=chat)
    options = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=2, pad_token_id=0)
    ids = model.generate(**inputs, generation_config=options)[0, start:]
    assert made == processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_questions_with_an_image_and_merges_of_models_that_see_are_scored(tmp_path: Path) -> None:
    folders = [make_seeing(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    make_image(tmp_path / "data" / "one.png")
    suite = read(
        suite_file(tmp_path, [{"image": "one.png", "question": "what?", "answers": ["a"]}], "qa", max_new_tokens=4)
    )
    assert score_folder(folders[0], suite, "all").items == 1
    suite = read(suite_file(tmp_path, [choice()]))
    scorer = Scorer(device="cpu")
    alone = score(scorer, folders[0], suite)
    recipe = Recipe.of_models("linear", [(ModelReference(str(one)), {"weight": 0.5}) for one in folders])
    with plan_merge(recipe) as plan:
        assert score_plan(scorer, plan, suite).items == 1
    assert score(scorer, folders[0], suite).scores == alone.scores


def test_the_suite_carries_its_images(tmp_path: Path) -> None:
    """So digest, split and fitness cache follow from their bytes, and a server needs no file."""
    image = make_image(tmp_path / "data" / "one.png")
    path = suite_file(tmp_path, [choice()])
    before = read(path)
    copy = Suite.from_json(before.to_json())
    assert copy.digest == before.digest
    (tmp_path / "again.yaml").write_text(before.to_json())
    assert read(tmp_path / "again.yaml").tasks[0].items[0].content == before.tasks[0].items[0].content
    make_image(image, seed=1)
    assert read(path).digest != before.digest
    with pytest.raises(SuiteError, match="only the command reads"):
        load_suite(path)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("none.png", "there is no image file none.png"),
        ("../secret.png", "outside of"),
        ("/etc/hostname", "outside of"),
        ("link.png", "outside of"),
        ("text.png", "no image of the formats PNG, JPEG, WEBP"),
        ("cut.png", "broken image"),
        ("bomb.png", "5000 × 4000 pixels"),
        ("strip.png", "4000 × 1 pixels; one side may be 32 times as long"),
        ("x" * 300, "cannot be read: File name too long"),
        ("a\0.png", r"'a\\x00.png' names no file"),
        ("circle.png", "'circle.png' names no file"),
        ("big.png", "more than 8 MiB"),
        ("data:image/png;base64,AAAA", "no image of the formats"),
        ("data:text/html,x", "no image of a data URL"),
        (7, "must be the name of an image file"),
    ],
)
def test_images_that_are_refused_are_told_with_file_and_line(image: Any, why: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    whole = make_image(data / "one.png").read_bytes()
    make_image(tmp_path / "secret.png")
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    (data / "text.png").write_text("no image")
    (data / "cut.png").write_bytes(whole[:-200])
    Image.new("1", (5000, 4000)).save(data / "bomb.png")
    Image.new("1", (4000, 1)).save(data / "strip.png")
    (data / "circle.png").symlink_to("circle.png")
    (data / "big.png").write_bytes(whole + bytes(8 << 20))
    path = suite_file(tmp_path, [choice(), choice(image=image)])
    with pytest.raises(SuiteError, match=why) as caught:
        read(path)
    assert str(caught.value).startswith(f"{data / 'items.jsonl'}:2: image: ")


def test_many_images_are_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_image(tmp_path / "data" / "one.png")
    monkeypatch.setattr(suite_images, "MAX_SUITE_BYTES", 4000)
    with pytest.raises(SuiteError, match=r"items.jsonl:3: image: the suite's images are more than"):
        read(suite_file(tmp_path, [choice()] * 3))


def test_a_kind_that_shows_no_images_names_those_that_do(tmp_path: Path) -> None:
    make_image(tmp_path / "data" / "one.png")
    path = suite_file(tmp_path, [{"image": "one.png", "text": "a b"}], "perplexity")
    with pytest.raises(SuiteError, match=r"perplexity shows no images; these do: .*multiple_choice"):
        read(path)


def test_an_image_of_a_client_that_lies_is_refused_where_it_is_decoded(tmp_path: Path) -> None:
    folder = make_seeing(tmp_path / "model")
    item = choice(image="data:image/png;base64,AAAA")
    suite = Suite.from_dict({"holdout": 0, "tasks": [{"name": "t", "kind": "multiple_choice", "items": [item]}]})
    with pytest.raises(SuiteError, match="no image of the formats"):
        score_folder(folder, suite, "all")
    with pytest.raises(SuiteError, match="must be a data URL"):
        Suite.from_dict({"tasks": [{"name": "t", "kind": "multiple_choice", "items": [choice()]}]})
    with pytest.raises(SuiteError, match="no base64"):
        images.image_of("data:image/png;base64,?")


@pytest.mark.parametrize("kind", ["multiple_choice", "exact_match"])
def test_a_token_behind_an_image_that_the_embedding_has_no_row_for_is_named(kind: str, tmp_path: Path) -> None:
    folder = make_seeing(tmp_path / "model")
    make_image(tmp_path / "data" / "one.png")
    tok = AutoProcessor.from_pretrained(folder).tokenizer
    tok.add_tokens([f"<{number}>" for number in range(40)])
    tok.save_pretrained(folder)
    item = {"image": "one.png", "prompt": "what <39>?", "answer": "x"}
    if kind == "multiple_choice":
        item = choice(prompt="what <39>?")
    with pytest.raises(ModelError, match="has the token '<39>' with the id 117, but the model's"):
        score_folder(folder, read(suite_file(tmp_path, [item], kind)), "all")


def test_a_model_without_a_processor_is_refused_with_the_reason(tmp_path: Path) -> None:
    make_image(tmp_path / "data" / "one.png")
    suite = read(suite_file(tmp_path, [choice()]))
    seeing = make_seeing(tmp_path / "seeing")
    blind = tmp_path / "blind"
    shutil.copytree(seeing, blind, ignore=shutil.ignore_patterns("*processor_config.json"))
    for folder in (blind, make(tmp_path / "llama")):
        for refuses in (score_folder, check_folder):
            with pytest.raises(
                SuiteError, match=r"'t' has items with images.*no preprocessor_config.json or processor"
            ):
                refuses(folder, suite)
    check_folder(seeing, suite)
    (seeing / "processor_config.json").write_text('{"processor_class": "NoSuchProcessor"}')
    with pytest.raises(SuiteError, match=r"its processor (cannot be loaded|reads no images)"):
        score_folder(seeing, suite, "all")
