"""Which class of transformers answers for a model, how it reads, and what cannot be scored."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, MarianTokenizer

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError, NotAModel, SuiteError
from evomerge_merging import plan_merge
from evomerge_scoring import generate_text, loaded, score_folder
from evomerge_scoring.asked import check_folder
from evomerge_scoring.config import context_of, text_config
from evomerge_scoring.encode_pairs import PairEncoder
from evomerge_scoring.model import Stop
from evomerge_scoring.reading import CAUSAL, ENCODED, MASKED, reading_of
from evomerge_scoring.resident import Resident
from evomerge_scoring.torch_model import TorchModel
from helpers import families, family_scores
from helpers.tiny_models import CHOICES, make, suite_of
from helpers.tiny_tokenizers import ENGLISH, make_sentencepiece

TEXT_OF_WRAPPERS = ("mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "smolvlm")
ENCODER_DECODERS = ("t5", "bart", "m2m_100")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Tiny configs are beyond what transformers expects of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def built(family: str, folder: Path, **settings: Any) -> tuple[Any, str]:
    """A tiny model of the family in a folder, as transformers loads it, and its kind."""
    kind, class_name = families.families()[family]
    families.make(family, class_name, folder, 1, **settings)
    return families.load(folder, class_name)[0], kind


@pytest.mark.parametrize("family", [*TEXT_OF_WRAPPERS, *ENCODER_DECODERS])
def test_likelihoods_and_generations_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model, kind = built(family, tmp_path)
    assert family_scores.compare(tmp_path, model, kind) == family_scores.Scored("yes", "yes")
    tok = AutoTokenizer.from_pretrained(tmp_path)
    ids = tok(family_scores.PROMPT, add_special_tokens=False, return_tensors="pt")["input_ids"]
    options = GenerationConfig(do_sample=False, max_new_tokens=8, eos_token_id=2, pad_token_id=0, use_cache=False,
                               decoder_start_token_id=2)  # fmt: skip
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)[0]
    wanted = made[1:] if model.config.is_encoder_decoder else made[ids.shape[1] :]
    found = generate_text(tmp_path, family_scores.PROMPT, 8, device="cpu")
    assert found.text == tok.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("family", "named", "class_name", "how"),
    [
        ("bart", "BartForConditionalGeneration", "BartForConditionalGeneration", ENCODED),
        ("bart", "BartForCausalLM", "BartForCausalLM", CAUSAL),
        ("bart", None, "BartForConditionalGeneration", ENCODED),
        ("bert", "BertForPreTraining", "BertForMaskedLM", MASKED),
        ("gemma3", "Gemma3ForConditionalGeneration", "Gemma3ForConditionalGeneration", CAUSAL),
        ("llama", "LlamaModel", "LlamaForCausalLM", CAUSAL),
        ("mistral3", None, "Mistral3ForConditionalGeneration", CAUSAL),
        ("t5", "T5ForConditionalGeneration", "T5ForConditionalGeneration", ENCODED),
    ],
)
def test_the_class_is_the_named_one_or_the_one_that_its_type_is_mapped_to(
    family: str, named: str | None, class_name: str, how: str
) -> None:
    config = families.small_config(family)
    config.architectures = [named] if named else None
    config.is_decoder = named == "BartForCausalLM"
    found = reading_of(config)
    assert (found.model_class.__name__, found.how) == (class_name, how)


def test_a_type_without_a_class_that_answers_with_a_text_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'clip' that answers with a text.*evomerge merge"):
        reading_of(AutoConfig.for_model("clip"))


def test_an_encoder_in_the_class_of_a_language_model_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertLMHeadModel"]}))
    for refuses in (score_folder, check_folder):
        with pytest.raises(ModelError, match=r"is_decoder is false.*name BertForMaskedLM"):
            refuses(folder, suite_of("multiple_choice", CHOICES))


def test_a_masked_model_that_is_to_continue_a_text_is_told_what_scores_it(tmp_path: Path) -> None:
    folder = make(tmp_path, "bert")
    for refuses in (score_folder, check_folder):
        with pytest.raises(SuiteError, match=r"cannot continue a text; kinds that score it: classification, .*writing"):
            refuses(folder, suite_of("exact_match", [{"prompt": "a", "answer": "b"}]))


def test_a_model_that_sees_ahead_is_refused(tmp_path: Path) -> None:
    """XLNet reads both ways, and nothing in its config says so."""
    built("xlnet", tmp_path)
    family_scores.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="depends on the tokens behind it"):
        family_scores.ours(tmp_path)


def test_an_encoder_decoder_needs_a_prompt_for_a_documents_likelihood(tmp_path: Path) -> None:
    built("t5", tmp_path)
    family_scores.tokenizer().save_pretrained(tmp_path)
    assert score_folder(tmp_path, suite_of("perplexity", [{"prompt": "a b", "text": "c d"}]), "all").fitness > 0
    with pytest.raises(SuiteError, match=r"document 0 has no prompt.*multiple_choice, exact_match or qa"):
        score_folder(tmp_path, suite_of("perplexity", [{"text": "c d"}]), "all")


@pytest.mark.parametrize(("kind", "answer"), [("multiple_choice", 0), ("exact_match", "c")])
def test_an_encoder_decoder_without_anything_to_read_is_refused(kind: str, answer: Any, tmp_path: Path) -> None:
    built("t5", tmp_path)
    family_scores.tokenizer().save_pretrained(tmp_path)
    more = {"choices": ["a", "b"]} if kind == "multiple_choice" else {}
    with pytest.raises(SuiteError, match=r"'\w+': an empty prompt, and the tokenizer adds no token to it"):
        score_folder(tmp_path, suite_of(kind, [{"prompt": "", "answer": answer, **more}]), "all")


def test_choices_are_encoded_as_the_decoders_language(tmp_path: Path) -> None:
    """Marian's tokenizer has a SentencePiece model for each of two languages."""
    for name, text in (("source", ENGLISH), ("target", "".join(sorted(ENGLISH)))):
        make_sentencepiece(tmp_path / name, text, 60, kind="t5")
    words = ["<pad>", "</s>", "<unk>"]
    for name in ("source", "target"):
        model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name / "spiece.model"))
        words += [model.id_to_piece(number) for number in range(model.get_piece_size())]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(dict.fromkeys(words))}))
    sides = [str(tmp_path / name / "spiece.model") for name in ("source", "target")]
    tok = MarianTokenizer(*sides, str(tmp_path / "vocab.json"))
    encoder = PairEncoder(tok, context=200, masked=False, vocabulary=len(tok), tree=0, decoder_start=0)
    text = ENGLISH[:40]
    theirs, ours = (tok(**{side: text}, add_special_tokens=False)["input_ids"] for side in ("text_target", "text"))
    (row,) = encoder.choices([(text, [text])]).rows
    assert [token for _, token in row.queries] == theirs != ours
    assert list(row.source) == [*ours, tok.eos_token_id]


@pytest.mark.parametrize("kind", ["t5", "xlm-roberta"])
def test_tokenizers_of_one_vocabulary_encode_either_side_alike(kind: str, tmp_path: Path) -> None:
    make_sentencepiece(tmp_path, kind=kind)
    tok = AutoTokenizer.from_pretrained(tmp_path)
    one, other = (
        tok(**{side: [" the end"]}, add_special_tokens=False)["input_ids"] for side in ("text", "text_target")
    )
    assert one == other


def test_the_context_of_led_is_its_decoders() -> None:
    config = AutoConfig.for_model("led", max_decoder_position_embeddings=32, max_encoder_position_embeddings=512)
    assert context_of(config, family_scores.tokenizer()) == 32


def test_a_stop_string_that_no_token_has_is_no_error(tmp_path: Path) -> None:
    built("t5", tmp_path)
    family_scores.tokenizer().save_pretrained(tmp_path)
    suite = suite_of("exact_match", [{"prompt": "a b", "answer": "c"}], stop=["\n", "b"], max_new_tokens=6)
    assert score_folder(tmp_path, suite, "all").items == 1


@pytest.mark.parametrize("family", ["t5", "qwen2_vl"])
def test_generation_is_greedy_whatever_the_generation_config_says(family: str, tmp_path: Path) -> None:
    """Plans and swaps have no beams and penalties, and equal weights have equal scores."""
    built(family, tmp_path)
    family_scores.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    plain = generate_text(tmp_path, family_scores.PROMPT, 12, device="cpu").text
    search = {"num_beams": 4, "repetition_penalty": 5.0, "min_length": 9, "no_repeat_ngram_size": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(search))
    assert generate_text(tmp_path, family_scores.PROMPT, 12, device="cpu").text == plain


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_decoder_says_what_it_must_from_a_folder_a_plan_and_a_swap(file: str, tmp_path: Path) -> None:
    resident, folders = Resident(torch.device("cpu")), [tmp_path / "free", tmp_path / "bound"]
    for folder in folders:
        built("t5", folder)
        family_scores.tokenizer().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
    path = folders[1] / file
    told = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**told, "forced_bos_token_id": 7, "bad_words_ids": [[0]]}))

    def said(model: TorchModel) -> list[int]:
        return model.continuations([[5, 6, 7]], Stop((), 4), 1)[0]

    free = said(resident.load_folder(folders[0]))
    assert free[:1] != [7]
    bound = said(resident.load_folder(folders[1]))
    assert bound[:1] == [7]
    with plan_merge(Recipe.of_source(ModelReference(str(folders[1])))) as plan:
        assert said(resident.load_plan(plan)) == bound
    assert said(resident.load_folder(folders[0])) == free
    assert resident.swaps > 0


def test_the_config_is_asked_once_for_the_size_of_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an encoder with a decoder each answer is a deep copy of the config."""
    built("t5", tmp_path)
    family_scores.tokenizer().save_pretrained(tmp_path)
    model = Resident(torch.device("cpu")).load_folder(tmp_path)
    asked: list[Any] = []

    def counted(config: Any) -> Any:
        asked.append(config)
        return text_config(config)

    monkeypatch.setattr(loaded, "text_config", counted)
    for _ in range(3):
        assert (model.vocabulary, model.padding) == (families.VOCAB, 0)
    assert len(asked) == 1


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_that_a_trainer_wraps_are_unwrapped(tmp_path: Path, wrapper: str) -> None:
    plain, wrapped = make(tmp_path / "plain"), make(tmp_path / "wrapped")
    tensors = load_file(wrapped / "model.safetensors")
    save_file({wrapper + name: one for name, one in tensors.items()}, wrapped / "model.safetensors", {"format": "pt"})
    suite = suite_of("multiple_choice", CHOICES)
    assert score_folder(wrapped, suite, "all").scores == score_folder(plain, suite, "all").scores
    assert generate_text(wrapped, "1 + 1 =", 5).text == generate_text(plain, "1 + 1 =", 5).text


def test_missing_tensors_are_told_with_what_helps(tmp_path: Path) -> None:
    folder = make(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotAModel, match=r"'model.norm.weight', which a LlamaForCausalLM.*of one save together"):
        score_folder(folder, suite_of("multiple_choice", CHOICES), "all")
