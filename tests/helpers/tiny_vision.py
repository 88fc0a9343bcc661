"""Tiny models that see, with the processors that transformers gives their families, and image files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from helpers import families
from helpers.family_scores import tokenizer

SIDE = 16
_TEMPLATE = (
    "{% for turn in messages %}{% if turn['content'] is string %}{{ turn['content'] }}{% else %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}:{% endfor %}"
)


def make_seeing(folder: Path, family: str = "llava", *, seed: int = 1) -> Path:
    """A model folder with a processor: llava's places an image token, gemma3's a token that begins an image."""
    size = {"height": SIDE, "width": SIDE}
    if family == "llava":
        tok = _tokenizer(image_token="<image>")
        settings: dict[str, Any] = {"image_token_index": _id(tok, "<image>"), "image_seq_length": 16}
        processor: Any = LlavaProcessor(
            image_processor=CLIPImageProcessor(size=size, crop_size=size), tokenizer=tok, patch_size=4,
            vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1,
            chat_template=_TEMPLATE.replace("IMAGE", "<image>"),
        )  # fmt: skip
    else:
        tok = _tokenizer(boi_token="<begin>", eoi_token="<finish>", image_token="<soft>")
        settings = {"mm_tokens_per_image": 4, "image_token_id": _id(tok, "<soft>"), "boi_token_id": _id(tok, "<begin>"),
                    "eoi_token_id": _id(tok, "<finish>")}  # fmt: skip
        processor = Gemma3Processor(
            image_processor=Gemma3ImageProcessor(size=size), tokenizer=tok, image_seq_length=4,
            chat_template=_TEMPLATE.replace("IMAGE", "<begin>"),
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        families.make(family, families.families()[family][1], folder, seed, **settings)
    processor.save_pretrained(folder)
    return folder


def make_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (24, 20)) -> Path:
    """An image file of noise; the name's ending is the format."""
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.frombytes("RGB", size, bytes(pixels.flatten().tolist())).save(path)
    return path


def _tokenizer(**extra: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=extra,
    )  # fmt: skip


def _id(tok: PreTrainedTokenizerFast, token: str) -> int:
    found = tok.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found
