"""Licences of merged models: the table, how licences are told, and pairs judged by hand."""

from __future__ import annotations

import itertools

import pytest

from evomerge_common.domain.licence_names import ALIASES, AND, identified, licence_of_metadata, licence_of_text
from evomerge_common.domain.licence_table import LICENCES
from evomerge_common.domain.licences import by_source, combine
from evomerge_common.errors import LicenceConflict

FINE, CONFLICT = "fine", "conflict"
NC_SA, NC, SA, BY = "cc-by-nc-sa-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-4.0"
JUDGED = [
    # one, other, judgement, the result's licence (or its name), why
    ("apache-2.0", "mit", FINE, "apache-2.0", "both permit any licence; Apache's asks for more"),
    ("mit", "mit", FINE, "mit", "the same"),
    ("mit", "bsd-3-clause", FINE, "bsd-3-clause", "permissive both"),
    ("cc0-1.0", "mit", FINE, "mit", "nothing is asked by CC0"),
    ("cc0-1.0", "unlicense", FINE, "cc0-1.0", "nothing is asked at all"),
    (BY, "apache-2.0", FINE, "apache-2.0", "attribution both"),
    ("isc", "bsd-2-clause", FINE, "bsd-2-clause", "permissive both"),
    ("apache-2.0", NC, FINE, NC, "NC makes the result NC: an obligation"),
    ("mit", NC_SA, FINE, NC_SA, "share-alike takes the permissive in"),
    (NC, NC_SA, FINE, NC_SA, "NC-SA asks for what NC asks for"),
    ("cc-by-nc-sa-3.0", NC_SA, FINE, NC_SA, "3.0 lets a later version be chosen, 4(b)"),
    (SA, NC_SA, CONFLICT, "", "each wants itself"),
    (SA, NC, CONFLICT, "", "SA forbids to add NC, 3(b)(3)"),
    (SA, "apache-2.0", FINE, SA, "share-alike takes the permissive in"),
    (SA, "gpl-3.0", FINE, "gpl-3.0", "one-way compatible by CC's own list"),
    (SA, "agpl-3.0", CONFLICT, "", "AGPL is not on CC's list"),
    (SA, "llama3.1", CONFLICT, "", "Llama's terms are further restrictions"),
    ("cc-by-sa-3.0", SA, FINE, SA, "3.0 lets a later version be chosen"),
    (NC_SA, "gpl-3.0", CONFLICT, "", "each wants itself"),
    (NC_SA, "gemma", CONFLICT, "", "Gemma's use restrictions are further terms"),
    (NC_SA, "llama2", CONFLICT, "", "Llama's policy and limits are further terms"),
    (NC_SA, "qwen-research", CONFLICT, "", "research only is more than NC"),
    ("gpl-3.0", "apache-2.0", FINE, "gpl-3.0", "one way"),
    ("gpl-2.0", "apache-2.0", CONFLICT, "", "patent terms, as the FSF reads it"),
    ("gpl-2.0", "gpl-3.0", CONFLICT, "", "2 alone and 3 alone exclude each other"),
    ("gpl", "gpl-3.0", FINE, "gpl-3.0", "without a version any may be chosen"),
    ("gpl-3.0", "agpl-3.0", FINE, "agpl-3.0", "section 13 of both"),
    ("gpl-3.0", "mit", FINE, "gpl-3.0", "MIT goes into GPL"),
    ("gpl-3.0", NC, CONFLICT, "", "NC is a further restriction, 10"),
    ("gpl-3.0", "llama3.1", CONFLICT, "", "Llama's terms are further restrictions, 10"),
    ("gpl-3.0", "bigscience-bloom-rail-1.0", CONFLICT, "", "use restrictions are further restrictions"),
    ("agpl-3.0", "gemma", CONFLICT, "", "use restrictions are further restrictions"),
    ("agpl-3.0", "mrl", CONFLICT, "", "research only is a further restriction"),
    ("lgpl-3.0", "gpl-3.0", FINE, "gpl-3.0", "LGPL may become GPL"),
    ("lgpl-3.0", "apache-2.0", FINE, "lgpl-3.0", "permissive goes in"),
    ("lgpl-2.1", "lgpl-3.0", FINE, "gpl-3.0", "both may become GPL 3, which is nearer than the AGPL"),
    ("lgpl-3.0", "gpl", FINE, "gpl-3.0", "GPL 3 is nearer than the AGPL"),
    ("lgpl-2.1", "gpl", FINE, "gpl-2.0", "section 3: GPL 2 or a later one"),
    ("afl-3.0", "gpl-2.0", CONFLICT, "", "the FSF: AFL's terms on contracts go with no GPL"),
    ("afl-3.0", "gpl-3.0", CONFLICT, "", "as with GPL 2"),
    ("afl-3.0", "gpl", CONFLICT, "", "as with GPL 2 and 3"),
    ("afl-3.0", "agpl-3.0", CONFLICT, "", "as with GPL 3"),
    ("afl-3.0", "lgpl-3.0", CONFLICT, "", "LGPL 3 is GPL 3 with permissions"),
    ("afl-3.0", "apache-2.0", FINE, "apache-2.0", "permissive both"),
    ("ms-pl", "gpl-2.0", CONFLICT, "", "3(D): source under Ms-PL alone, a further restriction"),
    ("ms-pl", "gpl-3.0", CONFLICT, "", "3(D), as with GPL 2"),
    ("ms-pl", "gpl", CONFLICT, "", "3(D), as with GPL 2 and 3"),
    ("ms-pl", "agpl-3.0", CONFLICT, "", "3(D)"),
    ("ms-pl", "lgpl-2.1", CONFLICT, "", "3(D)"),
    ("ms-pl", "lgpl", CONFLICT, "", "3(D)"),
    ("mpl-2.0", "gpl-3.0", FINE, "gpl-3.0", "a secondary licence, 3.3"),
    ("mpl-2.0", "mit", FINE, "mpl-2.0", "permissive goes in"),
    ("mpl-2.0", NC, CONFLICT, "", "recipients' rights may not be restricted, 3.1"),
    ("cc-by-nd-4.0", "mit", CONFLICT, "", "a changed model may not be shared"),
    ("cc-by-nc-nd-4.0", NC, CONFLICT, "", "a changed model may not be shared"),
    ("llama3.1", "apache-2.0", FINE, "llama3.1", "Llama's terms are passed on"),
    ("llama3.1", "llama3.1", FINE, "llama3.1", "the same"),
    ("llama3", "llama3.1", FINE, "llama3-and-llama3.1", "'Llama 3…' begins with 'Llama'; both agreements go along"),
    ("llama3.2", "llama3.3", FINE, "llama3.2-and-llama3.3", "both agreements go along"),
    ("llama2", "llama3", CONFLICT, "", "each may improve its own family alone, 1.b.v"),
    ("llama2", "apache-2.0", FINE, "llama2", "the result is a derivative of Llama 2"),
    ("llama4", NC, FINE, "cc-by-nc-4.0-and-llama4", "both sets of terms can be kept"),
    ("llama3.1", "gemma", FINE, "gemma-and-llama3.1", "both sets of terms can be kept; the name begins with Llama"),
    ("llama3.1", "glm-4", CONFLICT, "", "one name cannot begin with both"),
    ("llama3.3", "exaone", CONFLICT, "", "one name cannot begin with both"),
    ("llama3", "tencent-hunyuan-community", CONFLICT, "", "each may improve its own family alone"),
    ("gemma", "mit", FINE, "gemma", "the use restrictions are passed on"),
    ("gemma", "apache-2.0", FINE, "gemma", "the use restrictions are passed on"),
    ("openrail", "apache-2.0", FINE, "openrail", "the use restrictions are passed on"),
    ("openrail", "bigcode-openrail-m", FINE, "bigcode-openrail-m-and-openrail", "both attachments are passed on"),
    ("qwen", "apache-2.0", FINE, "qwen", "display and limit of users are kept"),
    ("qwen-research", "apache-2.0", FINE, "qwen-research", "the result is for research"),
    ("qwen-research", "qwen", FINE, "qwen-and-qwen-research", "both are kept; research only"),
    ("deepseek", "mit", FINE, "deepseek", "attachment A is passed on"),
    ("mrl", "apache-2.0", FINE, "mrl", "the result is for research"),
    ("mrl", NC, FINE, "cc-by-nc-4.0-and-mrl", "research only is within NC"),
    ("falcon-llm-license", "apache-2.0", FINE, "falcon-llm-license", "its terms are passed on"),
    ("nvidia-open-model-license", "llama3.1", FINE, "llama3.1-and-nvidia-open-model-license", "both are passed on"),
    ("cohere-cc-by-nc-4.0", "apache-2.0", FINE, "cohere-cc-by-nc-4.0", "NC, and the policy is passed on"),
    ("unknown", "mit", FINE, "unknown", "nobody knows; told, not judged"),
    ("other", "llama3.1", FINE, "unknown", "nobody knows; told, not judged"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "judgement", "result", "why"), JUDGED)
def test_pairs_judged_by_hand(one: str, other: str, judgement: str, result: str, why: str) -> None:
    for given in ({"a": one, "b": other}, {"b": other, "a": one}):
        plan = combine(given)
        assert bool(plan.conflicts) == (judgement == CONFLICT), why
        if judgement == FINE:
            assert plan.title == result, why
        else:
            refusing = [word for word in (one, other) if LICENCES[word].no_derivatives] or [one, other]
            assert all(LICENCES[word].title in " ".join(plan.conflicts) for word in refusing)
            assert (plan.licence, plan.name) == ("other", "conflicting-licences")


def test_the_table_has_many_licences_and_the_pairs_are_many() -> None:
    assert len(LICENCES) >= 80
    assert len({word for row in JUDGED for word in row[:2]}) >= 35
    assert set(ALIASES.values()) <= LICENCES.keys()
    assert all(licence.link.startswith("https://") for licence in LICENCES.values())
    assert all(set(licence.becomes) <= LICENCES.keys() for licence in LICENCES.values())


def test_what_is_owed_is_said() -> None:
    owed = " ".join(combine({"org/l": "llama3.1", "org/q": "apache-2.0"}).obligations)
    for words in (
        "begins with 'Llama'", "'Built with Llama'", "700 million", "acceptable use policy", "NOTICE", "Apache-2.0",
        "Copyright © Meta Platforms", "weights were changed",
    ):  # fmt: skip
        assert words in owed
    assert "no commercial use" in " ".join(combine({"a": NC, "b": "mit"}).obligations)
    assert "research alone" in " ".join(combine({"a": "mrl", "b": "mit"}).obligations)
    assert "under agpl-3.0 alone" in " ".join(combine({"a": "gpl-3.0", "b": "agpl-3.0"}).obligations)
    both = combine({"a": "llama3", "b": "llama3.1"}).obligations
    assert [text for text in both if "name that begins" in text] == ["give it a name that begins with 'Llama 3'"]


def test_a_conflict_names_both_sources_and_licences() -> None:
    (text,) = combine({"org/a": NC_SA, "org/b": "gpl-3.0", "org/c": "mit"}).conflicts
    assert all(word in text for word in ("org/a", "org/b", "CC-BY-NC-SA-4.0", "GPL-3.0"))
    assert "org/c" not in text


def test_sources_of_one_name_are_all_judged() -> None:
    named = by_source([("final", "gpl-2.0"), ("final (2)", "mit"), ("final", "apache-2.0"), ("final", "mit")])
    assert named == {"final": "gpl-2.0", "final (2)": "mit", "final (3)": "apache-2.0", "final (4)": "mit"}
    (text,) = combine(named).conflicts
    assert all(word in text for word in ("GPL-2.0 (final)", "Apache-2.0 (final (3))"))


def test_three_that_agree_in_pairs_alone() -> None:
    plan = combine({"a": "mpl-2.0", "b": SA, "c": "gpl-3.0"})
    assert plan.conflicts == ()
    assert plan.licence == "gpl-3.0"
    assert combine({"a": "eupl-1.1", "b": "mpl-2.0", "c": "osl-3.0"}).conflicts
    assert combine({"a": "lgpl-2.1", "b": "gpl", "c": "apache-2.0"}).licence == "gpl-3.0", "GPL 2 bars Apache 2"
    (text,) = combine({"a": "eupl-1.1", "b": "lgpl-2.1", "c": "apache-2.0", "d": "mit"}).conflicts
    assert "LGPL-2.1 (b), Apache-2.0 (c): there is no licence" in text


def test_what_is_nearest_does_not_hang_on_the_order_of_sources() -> None:
    alike = [licence for licence in LICENCES.values() if licence.becomes]
    for one, other in itertools.combinations(alike, 2):
        both = [word for word in one.becomes if word in other.becomes]
        assert both == [word for word in other.becomes if word in one.becomes], (one.id, other.id)


def test_an_adapter_on_its_base_has_both_licences() -> None:
    assert combine({"base+adapter": AND.join(["llama3.1", NC])}).title == "cc-by-nc-4.0-and-llama3.1"
    assert combine({"base+adapter": AND.join([SA, NC])}).conflicts


def test_what_is_not_known_is_told() -> None:
    plan = combine({"org/a": "", "org/b": "frobnication-1.0", "org/c": "mit"})
    assert (plan.licence, plan.conflicts) == ("unknown", ())
    assert "the licence of org/a is not told" in plan.notes[0]
    assert "'frobnication-1.0', which is in no table" in plan.notes[1]
    assert combine({"a": "frobnication-1.0", "b": "frobnication-1.0"}).title == "frobnication-1.0"
    assert combine({}).licence == "unknown"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"license": "apache-2.0"}, "apache-2.0"),
        ({"license": "Apache-2.0"}, "apache-2.0"),
        ({"license": "other", "license_name": "qwen-research"}, "qwen-research"),
        ({"license": "other", "license_name": "Tongyi Qianwen"}, "qwen"),
        ({"license": "other", "license_name": "meta-llama-3-1-community-license"}, "llama3.1"),
        ({"license": "llama3.3"}, "llama3.3"),
        ({"license": "other", "license_name": "my-own"}, "my-own"),
        ({"license": "other"}, "other"),
        ({"license": ["mit", "apache-2.0"]}, "mit, apache-2.0"),
        ({"license": "other", "license_name": "nvidia-open-model-license"}, "nvidia-open-model-license"),
        ({}, ""),
    ],
)
def test_metadata_of_cards(card: dict[str, object], expected: str) -> None:
    assert licence_of_metadata(card) == expected


def test_tags_count_where_the_card_is_silent() -> None:
    assert licence_of_metadata({}, ["merge", "license:gemma"]) == "gemma"
    assert licence_of_metadata({"license": "mit"}, ["license:gemma"]) == "mit"
    assert identified("LLAMA-3_2 community LICENSE") == "llama3.2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "                              Apache License\n                        Version 2.0, January 2004",
            "apache-2.0",
        ),
        ("MIT License\n\nCopyright (c) 2024", "mit"),
        ("Permission is hereby granted, free of charge, to any person", "mit"),
        ("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007", "gpl-3.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007", "agpl-3.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007", "lgpl-3.0"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date", "llama3.1"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3"),
        ("Qwen RESEARCH LICENSE AGREEMENT", "qwen-research"),
        ("Tongyi Qianwen LICENSE AGREEMENT", "qwen"),
        ("Attribution-NonCommercial-ShareAlike 4.0 International", NC_SA),
        ("Creative Commons Attribution 4.0 International Public License", BY),
        ("Mozilla Public License Version 2.0", "mpl-2.0"),
        ("# Mistral AI Research License", "mrl"),
        ("All rights reserved by the company.", ""),
        (
            "Mozilla Public License Version 2.0\n1.12. “Secondary License” means the GNU Affero General Public License",
            "mpl-2.0",
        ),
        ("Modified MIT License\n\nCopyright (c) 2025\n\nPermission is hereby granted, free of charge, to any", ""),
        ("Apache License Version 2.0 applies to the code. The weights are for research only.", ""),
        ("The MIT License, for non-commercial use.", ""),
        ("The MIT License, for noncommercial use.", ""),
        (f"Acme Model License\n{'Terms. ' * 60}\nParts are under the Apache License Version 2.0", ""),
        ("This is free and unencumbered software: for any purpose, commercial or non-commercial", "unlicense"),
        ("Creative Commons Attribution-NonCommercial 4.0 International\nNonCommercial means not primarily", NC),
        (
            f"Redistribution and use in source and binary forms{', with or without' * 40} neither the name",
            "bsd-3-clause",
        ),
    ],
)
def test_texts_are_told_by_their_heading(text: str, expected: str) -> None:
    assert licence_of_text(text) == expected


def test_a_conflict_is_an_error_until_it_is_accepted() -> None:
    plan = combine({"org/a": NC_SA, "org/b": "gpl-3.0"})
    with pytest.raises(LicenceConflict, match=r"org/a.*--accept-licence-conflict.*no legal advice"):
        plan.check()
    plan.check(accepted=True)
    assert any(text.startswith("licence conflict: ") for text in plan.sentences())
    combine({"org/a": "mit", "org/b": "apache-2.0"}).check()
