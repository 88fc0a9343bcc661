"""How a licence is called: identifiers of the Hub, names in model cards, the headings of its text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge_common.domain.licence_table import LICENCES

UNKNOWN, OTHER, AND = "unknown", "other", ", "
_LLAMA = re.compile(r"(meta-)?llama-?(?P<version>2|3([.-][123])?|4)(-community)?(-license)?(-agreement)?")

ALIASES = {
    "apache": "apache-2.0", "apache2": "apache-2.0", "apache-license-2.0": "apache-2.0", "mit-license": "mit",
    "cc0": "cc0-1.0", "cc-by": "cc-by-4.0", "cc-by-sa": "cc-by-sa-4.0", "cc-by-nc": "cc-by-nc-4.0",
    "cc-by-nc-sa": "cc-by-nc-sa-4.0", "cc-by-nd": "cc-by-nd-4.0", "cc-by-nc-nd": "cc-by-nc-nd-4.0",
    "gpl3": "gpl-3.0", "gplv3": "gpl-3.0", "agpl": "agpl-3.0", "agplv3": "agpl-3.0", "mpl": "mpl-2.0",
    "gemma-terms-of-use": "gemma", "gemma-license": "gemma", "qwen-license": "qwen", "qwen-license-agreement": "qwen",
    "tongyi-qianwen": "qwen", "tongyi-qianwen-license-agreement": "qwen", "qwen-research-license": "qwen-research",
    "qwen-research-license-agreement": "qwen-research", "tongyi-qianwen-research": "qwen-research",
    "deepseek-license": "deepseek", "deepseek-license-agreement": "deepseek", "falcon-llm": "falcon-llm-license",
    "falcon-180b-tii-license": "falcon-llm-license", "falcon-mamba-license": "falcon-llm-license",
    "tii-falcon-license": "falcon-llm-license", "tii-falcon-license-2.0": "falcon-llm-license",
    "mistral-ai-research-license": "mrl", "mistral-research-license": "mrl", "mistral-research": "mrl",
    "mrl-0.1": "mrl", "mnpl-0.1": "mnpl", "mistral-ai-non-production-license": "mnpl",
    "nvidia-open-model": "nvidia-open-model-license",
    "nvidia-open-model-license-agreement": "nvidia-open-model-license",
    "nvidia-nemotron-open-model-license": "nvidia-open-model-license",
    "exaone-ai-model-license-agreement-1.1-nc": "exaone", "exaone-1.1-nc": "exaone", "exaone-1.2-nc": "exaone",
    "cohere": "cohere-cc-by-nc-4.0", "c4ai-cc-by-nc-license": "cohere-cc-by-nc-4.0",
    "glm-4-license": "glm-4", "glm-4-9b-license": "glm-4", "the-glm-4-9b-license": "glm-4",
    "tencent-hunyuan-community-license": "tencent-hunyuan-community", "tencent-license": "tencent-hunyuan-community",
    "stability-ai-community": "stabilityai-ai-community", "stabilityai-community": "stabilityai-ai-community",
    "stability-ai-community-license": "stabilityai-ai-community", "yi": "yi-license", "lfm-open-license-v1.0": "lfm1.0",
    "dbrx": "databricks-open-model-license", "bigscience-rail": "bigscience-bloom-rail-1.0",
    "bigscience-rail-1.0": "bigscience-bloom-rail-1.0", "openrail-m": "openrail",
}  # fmt: skip
"""Other names that are met, in the form of `identified`."""
_HEADINGS = (
    (r"llama 4 community license", "llama4"), (r"llama 3\.3 community license", "llama3.3"),
    (r"llama 3\.2 community license", "llama3.2"), (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3 community license", "llama3"), (r"llama 2 community license", "llama2"),
    (r"gemma terms of use", "gemma"), (r"qwen research license", "qwen-research"),
    (r"(tongyi qianwen|qwen) license", "qwen"), (r"deepseek license agreement", "deepseek"),
    (r"mistral ai research licen[sc]e", "mrl"), (r"mistral ai non-production licen[sc]e", "mnpl"),
    (r"nvidia open model license", "nvidia-open-model-license"), (r"exaone ai model license", "exaone"),
    (r"falcon.{0,30}licen[sc]e", "falcon-llm-license"), (r"glm-4.{0,20}license", "glm-4"),
    (r"tencent hunyuan community license", "tencent-hunyuan-community"),
    (r"databricks open model license", "databricks-open-model-license"),
    (r"stability ai community license", "stabilityai-ai-community"),
    (r"yi series models community license", "yi-license"), (r"lfm open license", "lfm1.0"),
    (r"bigscience (bloom )?rail", "bigscience-bloom-rail-1.0"), (r"bigcode openrail-m", "bigcode-openrail-m"),
    (r"creativeml open ?rail\+\+-m", "openrail++"), (r"creativeml open ?rail-m", "creativeml-openrail-m"),
    (r"attribution-noncommercial-sharealike 4\.0", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial-noderivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"attribution-noncommercial 4\.0", "cc-by-nc-4.0"), (r"attribution-noderivatives 4\.0", "cc-by-nd-4.0"),
    (r"attribution-sharealike 4\.0", "cc-by-sa-4.0"), (r"attribution 4\.0 international", "cc-by-4.0"),
    (r"cc0 1\.0 universal", "cc0-1.0"), (r"gnu affero general public license", "agpl-3.0"),
    (r"gnu lesser general public license.{0,40}version 3", "lgpl-3.0"),
    (r"gnu lesser general public license.{0,40}version 2\.1", "lgpl-2.1"),
    (r"gnu general public license.{0,40}version 3", "gpl-3.0"),
    (r"gnu general public license.{0,40}version 2", "gpl-2.0"),
    (r"mozilla public license.{0,20}2\.0", "mpl-2.0"), (r"apache license.{0,20}version 2\.0", "apache-2.0"),
    (r"\bisc license", "isc"), (r"\bmit license|permission is hereby granted, free of charge", "mit"),
    (r"redistribution and use in source and binary forms.{0,2000}neither the name", "bsd-3-clause"),
    (r"redistribution and use in source and binary forms", "bsd-2-clause"),
    (r"this is free and unencumbered", "unlicense"),
)  # fmt: skip
"""How texts begin, of those that begin alike the more particular first."""
_HEADING_CHARACTERS, _PERMISSIVE_CHARACTERS = 3000, 300
_LIMITED = re.compile(
    r"modified (mit|apache|bsd)|research[ -](purposes )?only|(?<!commercial or )(?<!commercial and )non-?commercial"
)
"""What no permissive licence says of itself: another's text, or one for a part of the model alone."""


def identified(text: str) -> str:
    """Puts a licence's identifier or name in the form of the table; unchanged but for case where it is not in it."""
    word = re.sub(r"[\s_]+", "-", text.strip().lower())
    if match := _LLAMA.fullmatch(word):
        return f"llama{match['version'].replace('-', '.')}"
    return word if word in LICENCES else ALIASES.get(word, word or UNKNOWN)


def licence_of_metadata(card: Mapping[str, Any], tags: Iterable[str] = ()) -> str:
    """Reads the licence from a model card's metadata: identifiers, joined where there are several; "" for none.

    Args:
        card: the metadata: `license`, and `license_name` where that is `other`.
        tags: of the Hub, asked where the card has no word: `license:…`.

    """
    found = card.get("license") or next((tag[8:] for tag in tags if tag.startswith("license:")), "")
    words = [str(word) for word in found] if isinstance(found, list) else [str(found)] if found else []
    name = str(card.get("license_name") or "")
    return AND.join(identified(name if word.lower() == OTHER and name else word) for word in words)


def licence_of_text(text: str) -> str:
    """Tells a licence by the heading that comes first in its text; "" where none is known.

    A permissive licence is believed only at the very beginning, and where nothing beside it limits the use.
    """
    start = " ".join(text[:_HEADING_CHARACTERS].lower().split())
    matches = [(match.start(), licence) for pattern, licence in _HEADINGS if (match := re.search(pattern, start))]
    headings = [
        (place, licence)
        for place, licence in matches
        if place < _PERMISSIVE_CHARACTERS or not LICENCES[licence].is_permissive
    ]
    _, first = min(headings, key=lambda heading: heading[0], default=(0, ""))
    return "" if first and LICENCES[first].is_permissive and _LIMITED.search(start) else first


def joined(licences: Iterable[str]) -> str:
    """Writes the licences of a model's parts as one text, `UNKNOWN` for what is not known; "" where nothing is."""
    words = [licence or UNKNOWN for licence in licences]
    return "" if set(words) == {UNKNOWN} else AND.join(dict.fromkeys(words))
