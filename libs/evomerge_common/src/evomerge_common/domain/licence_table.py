"""The licences under which models are published, and what each asks of a model made from one of them.

Keys are the identifiers of the Hub (`license` of a model card's metadata, and `license_name` where that is `other`).
The comment beside a licence names the sections that its row rests on. This is a reading of texts by people who are no
lawyers: no legal advice, and careful rather than generous where a text can be read in two ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Licence:
    """One licence, as far as it matters for a model merged from others.

    Attributes:
        id: on the Hub, or a name of ours where the Hub has none.
        title: as people call it.
        link: its text.
        listed: whether the Hub takes `id` for `license`; else it is a `license_name`.
        attribution: names, copyright and licence text have to be kept.
        changes: it has to be said that the model was changed.
        notice: the sentence that a NOTICE file must hold.
        shown: words that must be displayed where the model is offered.
        named: with what the model's name must begin.
        becomes: for a licence that the result must have as well: the identifiers that satisfy it, the nearest first.
            Empty: any will do.
        bars: identifiers of licences without such a demand that are known not to go together with it all the same.
        passed_on: terms that every recipient must be bound by.
        non_commercial: no commercial use.
        research_only: no use but research; stricter than `non_commercial`.
        no_derivatives: a changed model may not be shared.
        limits: of whom or what it excludes.
        rivals: it may not improve other language models than this family and its derivatives.

    """

    id: str
    title: str
    link: str = ""
    listed: bool = True
    attribution: bool = True
    changes: bool = False
    notice: str = ""
    shown: str = ""
    named: str = ""
    becomes: tuple[str, ...] = ()
    bars: tuple[str, ...] = ()
    passed_on: str = ""
    non_commercial: bool = False
    research_only: bool = False
    no_derivatives: bool = False
    limits: str = ""
    rivals: str = ""

    @property
    def restrictions(self) -> frozenset[str]:
        """What recipients of the result may not do or must bear, beyond attribution, in words."""
        return frozenset(
            words
            for words, applies in (
                ("no commercial use", self.non_commercial or self.research_only),
                ("research only", self.research_only),
                (self.passed_on, self.passed_on),
                (f"a name that begins with {self.named!r}", self.named),
                (f"words to display ({self.shown!r})", self.shown),
                (self.limits, self.limits),
                (f"improves no language models but {self.rivals}", self.rivals),
            )
            if applies
        )

    @property
    def is_permissive(self) -> bool:
        """Whether a model made from it may have any licence, if the names are kept."""
        return not (self.restrictions or self.becomes or self.no_derivatives)


_SPDX, _CC = "https://spdx.org/licenses/{}.html", "https://creativecommons.org/licenses/{}/{}/"


def _permissive(
    identifier: str, title: str, *, spdx: str = "", attribution: bool = True, changes: bool = False
) -> Licence:
    link = _SPDX.format(spdx or title)
    return Licence(id=identifier, title=title, link=link, attribution=attribution, changes=changes)


def _cc(kind: str, version: str, *later: str) -> Licence:
    """Attribution and a notice of changes: section 3(a) of 4.0, 4 of the earlier. NC: 2(a)(1), before 4(b). ND:
    2(a)(1), before 3. SA: 3(b), before 4(b), where a later version will do as well; both forbid further terms.
    """
    parts = kind.split("-")
    own = f"cc-{kind}-{version}"
    return Licence(
        id=own, title=f"CC-{kind.upper()}-{version}", link=_CC.format(kind, version), changes=True,
        becomes=(own, *later) if "sa" in parts else (),
        non_commercial="nc" in parts, no_derivatives="nd" in parts,
    )  # fmt: skip


def _copyleft(identifier: str, title: str, *becomes: str, spdx: str, bars: tuple[str, ...] = ()) -> Licence:
    link = _SPDX.format(spdx)
    return Licence(id=identifier, title=title, link=link, changes=True, becomes=(identifier, *becomes), bars=bars)


def _rail(identifier: str, title: str, link: str) -> Licence:
    """Paragraph 4 (a copy, notices of changes), 5 and attachment A (use restrictions, in derivatives as well)."""
    restrictions = f"the use restrictions of {title} (attachment A)"
    return Licence(id=identifier, title=title, link=link, changes=True, passed_on=restrictions)


def _llama(version: str, *, name: str, shown: str = "", named: str = "", rivals: str = "") -> Licence:
    """Section 1.b.i (a copy; display and name since 3), 1.b.iii (notice), 1.b.iv (acceptable use), 1.b.v (improves no
    other models: in 2 and 3 alone), 2 (700 million monthly users).
    """
    return Licence(
        id=f"llama{version}", title=f"{name} Community License",
        link=f"https://www.llama.com/llama{version.replace('.', '_')}/license/",
        notice=f"{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights "
        "Reserved.",
        shown=shown, named=named, rivals=rivals,
        passed_on=f"the agreement and the acceptable use policy of {name}",
        limits=f"whoever had more than 700 million monthly users when {name} came out needs a licence from Meta",
    )  # fmt: skip


def _own(
    identifier: str, title: str, link: str = "", *, passed_on: str = "", listed: bool = False, **terms: Any
) -> Licence:
    """A maker's own licence, whose copy goes with every derivative."""
    bound = passed_on or f"the terms of the {title}"
    return Licence(id=identifier, title=title, link=link, listed=listed, passed_on=bound, changes=True, **terms)


_GPL_3 = ("gpl-3.0", "agpl-3.0")
"""What a work under GPL 3 may become a part of: GPL 3, and a whole under AGPL 3 (section 13 of both)."""
_NO_GPL = ("afl-3.0", "ms-pl")
"""What goes with no GPL, as the FSF reads it: AFL 3.0's terms on contracts (9), Ms-PL's own licence alone (3(D))."""
_QWEN = "Built with Qwen"

LICENCES: dict[str, Licence] = {
    licence.id: licence
    for licence in (
        # --- permissive: names and texts are kept ---
        _permissive("apache-2.0", "Apache-2.0", changes=True),  # 4(a)-(d): licence, changes, notices, NOTICE
        _permissive("mit", "MIT"),
        _permissive("isc", "ISC"),
        _permissive("bsd", "BSD", spdx="BSD-3-Clause"),
        _permissive("bsd-2-clause", "BSD-2-Clause"),
        _permissive("bsd-3-clause", "BSD-3-Clause"),  # 3: no names for endorsement
        _permissive("bsd-3-clause-clear", "BSD-3-Clause-Clear"),  # without a licence of patents
        _permissive("bsl-1.0", "BSL-1.0"),
        _permissive("afl-3.0", "AFL-3.0", changes=True),  # 6
        _permissive("ms-pl", "MS-PL"),  # 3(C)-(D)
        _permissive("ncsa", "NCSA"),
        _permissive("zlib", "Zlib", changes=True),  # 2: altered versions are marked
        _permissive("postgresql", "PostgreSQL"),
        _permissive("cdla-permissive-1.0", "CDLA-Permissive-1.0", changes=True),  # 3.2
        _permissive("cdla-permissive-2.0", "CDLA-Permissive-2.0"),  # 2.1
        _permissive("openmdw-1.0", "OpenMDW-1.0"),
        _permissive("cc0-1.0", "CC0-1.0", attribution=False),  # 2, 3
        _permissive("unlicense", "Unlicense", attribution=False),
        _permissive("wtfpl", "WTFPL", attribution=False),
        _permissive("pddl", "PDDL-1.0", attribution=False),
        *(_cc("by", version) for version in ("2.0", "2.5", "3.0", "4.0")),
        # --- Creative Commons with conditions ---
        *(_cc("by-nc", version) for version in ("2.0", "3.0", "4.0")),
        *(_cc("by-nd", "4.0"), _cc("by-nc-nd", "3.0"), _cc("by-nc-nd", "4.0")),
        _cc("by-sa", "3.0", "cc-by-sa-4.0"),
        _cc("by-sa", "4.0", "gpl-3.0"),  # 3(b)(1); the list of compatible licences names GPL 3, one way
        _cc("by-nc-sa", "2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
        _cc("by-nc-sa", "3.0", "cc-by-nc-sa-4.0"),
        _cc("by-nc-sa", "4.0"),
        # --- copyleft; whether "or any later version" is meant the identifier does not say, so it is not supposed ---
        _copyleft("gpl-3.0", "GPL-3.0", "agpl-3.0", spdx="GPL-3.0-only", bars=_NO_GPL),  # 5(c), 10, 13: nothing further
        # 2(b), 6 (nothing further); the FSF holds Apache 2.0's terms on patents for further ones
        _copyleft("gpl-2.0", "GPL-2.0", spdx="GPL-2.0-only", bars=("apache-2.0", *_NO_GPL)),
        # without a version any (9 of 2, 14 of 3)
        _copyleft("gpl", "GPL", "gpl-2.0", *_GPL_3, spdx="GPL-3.0-or-later", bars=_NO_GPL),
        _copyleft("agpl-3.0", "AGPL-3.0", spdx="AGPL-3.0-only", bars=_NO_GPL),  # 5(c), 10, 13
        _copyleft("lgpl-3.0", "LGPL-3.0", *_GPL_3, spdx="LGPL-3.0-only", bars=_NO_GPL),  # its 2(b): or the GPL
        # 3: or the GPL, 2 or later
        _copyleft("lgpl-2.1", "LGPL-2.1", "gpl-2.0", *_GPL_3, spdx="LGPL-2.1-only", bars=_NO_GPL),
        _copyleft("lgpl", "LGPL", "lgpl-2.1", "lgpl-3.0", "gpl-2.0", *_GPL_3, spdx="LGPL-3.0-or-later", bars=_NO_GPL),
        # 3.2, 3.3: or one of its secondary licences
        _copyleft("mpl-2.0", "MPL-2.0", "lgpl-2.1", "lgpl-3.0", "gpl-2.0", *_GPL_3, spdx="MPL-2.0"),
        _copyleft("eupl-1.1", "EUPL-1.1", "eupl-1.2", "gpl-2.0", "osl-3.0", spdx="EUPL-1.1"),  # 5 and appendix
        _copyleft(
            "eupl-1.2", "EUPL-1.2", "mpl-2.0", "lgpl-2.1", "lgpl-3.0", "gpl-2.0", *_GPL_3, "osl-3.0", spdx="EUPL-1.2"
        ),  # 5 and appendix
        _copyleft("osl-3.0", "OSL-3.0", spdx="OSL-3.0"),  # 1(c)
        _copyleft("epl-2.0", "EPL-2.0", spdx="EPL-2.0"),  # 3.2
        _copyleft("odbl", "ODbL-1.0", spdx="ODbL-1.0"),  # 4.4
        _copyleft("cdla-sharing-1.0", "CDLA-Sharing-1.0", spdx="CDLA-Sharing-1.0"),  # 3.1
        _copyleft("gfdl", "GFDL-1.3", spdx="GFDL-1.3-only"),  # 4
        # --- responsible AI licences ---
        _rail("openrail", "OpenRAIL", "https://huggingface.co/blog/open_rail"),
        _rail("openrail++", "CreativeML Open RAIL++-M", "https://huggingface.co/stabilityai/stable-diffusion-2"),
        _rail("creativeml-openrail-m", "CreativeML OpenRAIL-M",
              "https://huggingface.co/spaces/CompVis/stable-diffusion-license"),
        _rail("bigscience-openrail-m", "BigScience OpenRAIL-M",
              "https://www.licenses.ai/blog/2022/8/26/bigscience-open-rail-m-license"),
        _rail("bigscience-bloom-rail-1.0", "BigScience RAIL 1.0", "https://huggingface.co/spaces/bigscience/license"),
        _rail("bigcode-openrail-m", "BigCode OpenRAIL-M",
              "https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement"),
        # --- makers' own ---
        _llama("2", name="Llama 2", rivals="Llama 2"),
        _llama("3", name="Meta Llama 3", shown="Built with Meta Llama 3", named="Llama 3", rivals="Meta Llama 3"),
        *(_llama(v, name=f"Llama {v}", shown="Built with Llama", named="Llama") for v in ("3.1", "3.2", "3.3", "4")),
        # 3.1: a copy, notices of changes, the use restrictions of 3.2 as an enforceable provision, a notice
        _own(
            "gemma", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms", listed=True,
            passed_on="the use restrictions of the Gemma Terms of Use (section 3.2)",
            notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        ),
        # 3 (copy, changes, notice), 4 (words to display), 3 or 4 (100 million monthly users)
        _own(
            "qwen", "Qwen License Agreement", "https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
            shown=_QWEN, limits="more than 100 million monthly users need a licence from Alibaba Cloud",
            notice="Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights "
            "Reserved.",
        ),
        _own(
            "qwen-research", "Qwen Research License Agreement",
            "https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE", shown=_QWEN,
            non_commercial=True, research_only=True,
            notice="Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All "
            "Rights Reserved.",
        ),  # 2(a) and 1: research and evaluation alone; 3; 4
        # 4 (copy, changes), 5 and attachment A (use restrictions)
        _own(
            "deepseek", "DeepSeek License Agreement", "https://github.com/deepseek-ai/DeepSeek-LLM/blob/main/LICENSE-MODEL",
            passed_on="the use restrictions of the DeepSeek License Agreement (attachment A)",
        ),
        # 2 and 3: acceptable use policy, copy, words to display; above a revenue royalties are due in version 1
        _own(
            "falcon-llm-license", "TII Falcon LLM License", "https://falconllm.tii.ae/falcon-terms-and-conditions.html",
            passed_on="the TII Falcon LLM License and its acceptable use policy",
            shown="Built using Falcon LLM technology from the Technology Innovation Institute",
        ),
        # 2.1 (research purposes), 2.2 (copy, notice), 3 (limits)
        _own(
            "mrl", "Mistral AI Research License", "https://mistral.ai/licenses/MRL-0.1.md", non_commercial=True,
            research_only=True, notice="Licensed by Mistral AI under the Mistral AI Research License",
        ),
        # 3: non-production purposes
        _own(
            "mnpl", "Mistral AI Non-Production License", "https://mistral.ai/licenses/MNPL-0.1.md", non_commercial=True,
            research_only=True, notice="Licensed by Mistral AI under the Mistral AI Non-Production License",
        ),
        # 3.1 (copy, notice), 2.1 (guardrails, litigation), 2.3 (trustworthy AI terms)
        _own(
            "nvidia-open-model-license", "NVIDIA Open Model License",
            "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
            notice="Licensed by NVIDIA Corporation under the NVIDIA Open Model License",
        ),
        # 2.1 (research), 3.1 (commercial use, competing models), 4 (derivatives: the same terms, the name)
        _own(
            "exaone", "EXAONE AI Model License Agreement (NC)",
            "https://huggingface.co/LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct/blob/main/LICENSE", non_commercial=True,
            research_only=True, named="EXAONE", rivals="EXAONE",
        ),
        # Cohere's addendum to CC-BY-NC 4.0: its acceptable use policy
        _own(
            "cohere-cc-by-nc-4.0", "CC-BY-NC-4.0 with Cohere's Acceptable Use Addendum",
            "https://cohere.com/c4ai-cc-by-nc-license", non_commercial=True,
            passed_on="Cohere's acceptable use policy",
        ),
        # registration before commercial use; display and name of derivatives
        _own(
            "glm-4", "GLM-4 License", "https://huggingface.co/THUDM/glm-4-9b/blob/main/LICENSE",
            shown="Built with glm-4", named="glm-4", limits="commercial use needs a registration with Zhipu AI",
        ),
        # 2 (territory), 3 (distribution), 5(b) (improves no other models)
        _own(
            "tencent-hunyuan-community", "Tencent Hunyuan Community License Agreement",
            "https://huggingface.co/tencent/Tencent-Hunyuan-Large/blob/main/LICENSE.txt", rivals="Tencent Hunyuan",
            limits="it excludes the European Union, the United Kingdom and South Korea, and whoever had more than 100 "
            "million monthly users",
        ),
        # 1.3, 2.2: improves no other models; 2.3: notice; 4: 700 million monthly users
        _own(
            "databricks-open-model-license", "Databricks Open Model License",
            "https://www.databricks.com/legal/open-model-license", rivals="DBRX",
            notice="DBRX is provided under and subject to the Databricks Open Model License, Copyright © Databricks, "
            "Inc. All rights reserved.",
            limits="more than 700 million monthly users need a licence from Databricks",
        ),
        # III (copy, notice, words to display), IV (revenue of 1 million dollars)
        _own(
            "stabilityai-ai-community", "Stability AI Community License", "https://stability.ai/license",
            shown="Powered by Stability AI",
            limits="a yearly revenue of more than 1 million dollars needs a licence from Stability AI",
            notice="This Stability AI Model is licensed under the Stability AI Community License, Copyright © "
            "Stability AI Ltd. All Rights Reserved",
        ),
        _own("yi-license", "Yi Series Models Community License", "https://huggingface.co/01-ai/Yi-34B/blob/main/LICENSE"),
        _own(
            "lfm1.0", "LFM Open License 1.0", "https://huggingface.co/LiquidAI/LFM2-1.2B/blob/main/LICENSE",
            limits="commercial use is for yearly revenues below 10 million dollars",
        ),
        _own(
            "h-research", "H Research License", "https://huggingface.co/Hcompany", listed=True, non_commercial=True,
            research_only=True,
        ),
        _own(
            "intel-research", "Intel Research Use License", "https://huggingface.co/Intel", listed=True,
            non_commercial=True, research_only=True,
        ),
        _own(
            "apple-amlr", "Apple Machine Learning Research Model License",
            "https://huggingface.co/apple/OpenELM/blob/main/LICENSE", listed=True, non_commercial=True,
            research_only=True,
        ),
        _own(
            "apple-ascl", "Apple Sample Code License", "https://github.com/apple/ml-stable-diffusion/blob/main/LICENSE.md",
            listed=True, passed_on="its text in copies that are whole and unmodified",
        ),
        _own(
            "fair-noncommercial-research-license", "FAIR Noncommercial Research License", "https://huggingface.co/facebook",
            listed=True, non_commercial=True, research_only=True,
            passed_on="the FAIR Noncommercial Research License and its acceptable use policy",
        ),
        _own(
            "grok2-community", "Grok 2 Community License", "https://huggingface.co/xai-org/grok-2/blob/main/LICENSE",
            listed=True, shown="Powered by xAI", rivals="Grok 2",
        ),
    )
}  # fmt: skip
