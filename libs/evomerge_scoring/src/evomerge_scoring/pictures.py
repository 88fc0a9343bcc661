"""Texts with an image in them, by the model's own processor: it places the image's tokens and prepares its pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge_common.errors import ModelError, SuiteError
from evomerge_scoring.images import image_of
from evomerge_scoring.model import Picture

NO_PROCESSOR = "it has no preprocessor_config.json or processor_config.json, which say how images are prepared"


_FILES = ("preprocessor_config.json", "processor_config.json")


class Sight:
    """A model's processor, or why it has none.

    Args:
        processor: of transformers; None: the model reads no images.
        fault: why it does not.

    """

    def __init__(self, processor: Any = None, fault: str = "") -> None:
        self._processor = processor
        self.fault = fault or ("" if processor is not None else NO_PROCESSOR)

    def check(self, task: str) -> None:
        """Called before items with images are encoded.

        Raises:
            SuiteError: the model reads no images; says why, and what may be asked of it.

        """
        if self.fault:
            raise SuiteError(
                f"task {task!r} has items with images, which this model cannot be asked: {self.fault}; tasks "
                "of any kind without images can be scored"
            )

    def picture(self, prompt: str, image: str, *, chat: bool) -> Picture:
        """The prompt with the image before it, or where the prompt itself has the processor's image token.

        Args:
            image: a data URL.
            chat: both are a user's turn in the processor's chat template, which places the image.

        Raises:
            ModelError: `chat` asks for a chat template and the model has none, or it does not work.

        """
        if not chat:
            token = self._image_token
            return Picture(prompt if token in prompt else token + prompt, image)
        if not getattr(self._processor, "chat_template", None):
            raise ModelError("the model's processor has no chat template, and the task says chat: true")
        turn = [{"type": "image"}, {"type": "text", "text": prompt}]
        try:
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever the template does
            raise ModelError(f"the processor's chat template does not work: {str(error)[:200]}") from error
        return Picture(str(text), image, rendered=True)

    def inputs(self, picture: Picture) -> dict[str, Any]:
        """What the model's forward takes, one row: input_ids (1, tokens) int64, attention mask, pixels and the rest.

        Raises:
            SuiteError: the image is broken, or the processor cannot read the pair.

        """
        words = {"add_special_tokens": False} if picture.rendered else {}
        image = image_of(picture.image)
        try:
            found = dict(self._processor(text=[picture.text], images=[[image]], return_tensors="pt", **words))
        except Exception as error:  # processors raise of any type
            raise SuiteError(f"the model's processor cannot read the item's image: {str(error)[:300]}") from error
        return found

    def ids(self, picture: Picture) -> tuple[int, ...]:
        """The tokens of the text, those of the image among them."""
        return tuple(self.inputs(picture)["input_ids"][0].tolist())

    @property
    def image_id(self) -> int | None:
        """The token that stands for a piece of an image, which the model replaces and may have no row for."""
        own = getattr(self._processor, "image_token_id", None)
        if isinstance(own, int):
            return own
        token = getattr(self._processor, "image_token", None)
        found = self._processor.tokenizer.convert_tokens_to_ids(str(token)) if token else None
        return found if isinstance(found, int) else None

    @property
    def _image_token(self) -> str:
        """What stands for an image in a text; "" where the processor puts it there itself."""
        names = ("boi_token", "image_token")  # the first is what becomes several of the second, where there is one
        return str(next((token for name in names if (token := getattr(self._processor, name, None))), ""))


def load_sight(folder: Path) -> Sight:
    """The processor of a model folder; no code of the folder runs and nothing is fetched."""
    if not any((folder / name).is_file() for name in _FILES):
        return Sight()
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a library that the processor needs and is not here; a config that means nothing
        return Sight(fault=f"its processor cannot be loaded: {' '.join(str(error).split())[:300]}")
    if getattr(processor, "image_processor", None) is None:
        return Sight(fault="its processor reads no images")
    return Sight(processor)
