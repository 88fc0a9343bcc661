"""Which vocabulary, tokenizer files and chat template a merged model gets, and its sources seen in that vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError, RecipeError, did_you_mean
from evomerge_merging.engine.architecture import text_config
from evomerge_merging.engine.source import Source
from evomerge_merging.tokens.chat_templates import chat_template, template_of
from evomerge_merging.tokens.compare import check_read, compare, tokens_with_rows
from evomerge_merging.tokens.files import (
    TokenizerPlan,
    added_tokens,
    tokenizer_json,
    vocabulary,
)
from evomerge_merging.tokens.instruction import Instruction, instruction_of, renumbered
from evomerge_merging.tokens.union import unite
from evomerge_merging.tokens.vocabulary import Target, align, embedding_rows, known_rows, origins


@dataclass
class _Choice:
    """What is known while the decision is made. `chosen` is the source whose tokenizer files are kept."""

    rule: Recipe
    sources: Mapping[str, Source]
    notes: list[str]
    outside: Source | None = None
    preserve: bool | None = None

    def __post_init__(self) -> None:
        self.words = {
            word: reference.key
            for reference in self.rule.sources()
            for word in (reference.name, str(reference), reference.key)
        }
        self.everyone = list(self.sources.values())
        opened = [*self.everyone, *([self.outside] if self.outside else [])]
        self.vocabularies = {source.key: vocabulary(source.folder) for source in opened}
        found = [
            instruction_of(source, self.vocabularies[source.key], embedding_rows(source))
            for source in self.everyone
            if self.preserve is not False
        ]
        self.instructions = {one.source.key: one for one in found if one is not None}
        if self.preserve and not self.instructions:
            raise RecipeError(
                "no model is instruction-tuned (with a chat template that writes one of its end tokens), so there is "
                "nothing to preserve",
                ("preserve_instruction",),
            )

    def named(self, text: str) -> Source:
        if self.outside is not None:
            return self.outside
        key = self.words.get(text) or next((k for k, s in self.sources.items() if text in {k, s.label}), None)
        if key is None:
            hint = did_you_mean(text, ["base", "union", *self.words])
            raise RecipeError(
                f"{text!r} is no model of the recipe, whose tokenizer could be taken; {hint}", ("tokenizer",)
            )
        return self.sources[key]


def named_outside(recipe: Recipe) -> ModelReference | None:
    """The folder whose tokenizer is asked for, where that is none of the recipe's models."""
    text = next(_rules(recipe), recipe).tokenizer
    known = {word for item in recipe.sources() for word in (item.name, str(item), item.key)}
    if text in {"", "base", "union", *known} or not Path(text).expanduser().is_dir():
        return None
    return ModelReference(text)


def plan_tokenizer(
    recipe: Recipe, sources: Mapping[str, Source], outside: Source | None = None
) -> tuple[TokenizerPlan, dict[str, Source], list[str]]:
    """The tokenizer of a recipe's model, its sources in that vocabulary, and what is to be said about it.

    Args:
        recipe: its `tokenizer`, `tokens`, `pad_to_multiple_of` and `chat_template`; of a nested recipe the outermost
            that sets a tokenizer rules all.
        sources: of all inputs, the one that gives the config first.
        outside: see `named_outside`.

    Raises:
        ModelError: the vocabularies differ and the recipe does not say what to do, or cannot be united.
        RecipeError: no such model, token or chat template.

    """
    rule = next(_rules(recipe), recipe)
    notes: list[str] = []
    if rule is not recipe:
        notes.append(
            f"the tokenizer setting {rule.tokenizer or 'of a nested recipe'!r} of a nested recipe holds for all"
        )
    preserve = rule.preserve_instruction if recipe.preserve_instruction is None else recipe.preserve_instruction
    choice = _Choice(rule, sources, notes, outside, preserve)
    explicit = bool(rule.tokenizer or rule.tokens or rule.pad_to_multiple_of)
    if explicit:
        plan, aligned = _explicit(choice)
    else:
        plan, aligned = _implicit(choice)
    plan = _with_template(recipe, plan, choice)
    notes.extend(plan.kept)
    return plan, aligned, notes


def _rules(recipe: Recipe) -> Iterator[Recipe]:
    if recipe.tokenizer or recipe.tokens or recipe.pad_to_multiple_of:
        yield recipe
    for item in recipe.inputs():
        if isinstance(item, Recipe):
            yield from _rules(item)


def _implicit(choice: _Choice) -> tuple[TokenizerPlan, dict[str, Source]]:
    """Nothing is said: one vocabulary is expected, and an instruction-tuned source's tokenizer is preserved."""
    donor = choice.everyone[0]
    for source in choice.everyone[1:]:
        compare(donor, source, choice.vocabularies, choice.notes)
    chosen = donor
    tuned = next((one.source for one in choice.instructions.values()), None)
    if tuned is None and choice.preserve is not False and not template_of(donor.folder):
        tuned = next((source for source in choice.everyone if template_of(source.folder)), None)
    if tuned is not None and donor.key not in choice.instructions and choice.vocabularies[tuned.key]:
        chosen = tuned
        special = [token for token in added_tokens(tuned.folder) if token not in choice.vocabularies[donor.key]]
        told = f" and its own tokens {', '.join(map(repr, special[:6]))}" if special else ""
        choice.notes.append(
            f"the tokenizer of {tuned.label}, which is instruction-tuned, is kept with its chat template{told}"
        )
    rows = {embedding_rows(source) for source in choice.everyone}
    kept = _kept(choice, chosen)
    if kept and len(rows) == 1 and 0 not in rows:
        return _aligned(choice, chosen, Target(tokens_with_rows(chosen), embedding_rows(chosen)), {}, kept)
    if len(rows) == 1 or 0 in rows or not choice.vocabularies[chosen.key]:
        config = _special_ids(chosen, donor)
        return TokenizerPlan(chosen.folder, config=config, default=chosen is donor), dict(choice.sources)
    target = Target(tokens_with_rows(chosen), embedding_rows(chosen))
    choice.notes.append(
        f"the embeddings have {' and '.join(map(str, sorted(rows)))} rows: the result has {chosen.label}'s tokens in "
        f"{target.rows} rows"
    )
    return _aligned(choice, chosen, target, {}, kept)


def _kept(choice: _Choice, chosen: Source | None) -> list[Instruction]:
    """The instruction-tuned sources whose special tokens' rows stay as they are: those that speak like `chosen`.

    None where all sources are tuned alike, since their rows then merge like all others.
    """
    tuned = list(choice.instructions.values())
    if not tuned or len(tuned) == len(choice.everyone):
        return []
    template = next((one.template for one in tuned if chosen is not None and one.source is chosen), tuned[0].template)
    return [one for one in tuned if one.template.strip() == template.strip()]


def _explicit(choice: _Choice) -> tuple[TokenizerPlan, dict[str, Source]]:
    rule, donor = choice.rule, choice.everyone[0]
    chosen = donor
    if rule.tokenizer == "base":
        if rule.base is None:
            raise RecipeError("the tokenizer is to be the base's, but the recipe names no base", ("tokenizer",))
        chosen = choice.sources[rule.base.key if isinstance(rule.base, ModelReference) else rule.base.sources()[0].key]
    elif rule.tokenizer not in {"", "union"}:
        chosen = choice.named(rule.tokenizer)
    first = choice.vocabularies[chosen.key]
    for source in choice.everyone:
        check_read(chosen, source, choice.vocabularies, choice.notes)
    if not first or any(not embedding_rows(source) for source in choice.everyone):
        if rule.tokens or len({len(found) for found in choice.vocabularies.values() if found}) > 1:
            raise ModelError(
                f"{chosen.label} has no tokenizer or no token embedding that can be told; it cannot be aligned"
            )
        return TokenizerPlan(chosen.folder, default=rule.tokenizer in {"", "union"}), dict(choice.sources)
    tokens = {token: row for token, row in first.items() if row < embedding_rows(chosen)}
    files = [chosen]
    lost = [token for token in first if token not in tokens]
    if lost:
        choice.notes.append(f"{len(lost)} tokens of {chosen.label} have no row ({lost[0]!r}, …): they are left out")
    if rule.tokenizer == "union":
        for source in choice.everyone:
            rows = embedding_rows(source)
            theirs = sorted(choice.vocabularies[source.key].items(), key=lambda item: item[1])
            new = [token for token, row in theirs if token not in tokens and row < rows]
            if new:
                files.append(source)
                tokens = _extended(tokens, new)
                told = ", ".join(repr(token) for token in new[:3])
                choice.notes.append(f"{len(new)} tokens of {source.label} are added to {chosen.label}'s ({told}, …)")
    kept = _kept(choice, None if chosen.key not in choice.instructions else chosen) if choice.preserve else []
    for one in kept:
        new = [token for token in one.tokens if token not in tokens]
        if new:
            files.append(one.source)
            tokens = _extended(tokens, new)
    own = [token for token in rule.tokens if token not in tokens]
    tokens = _extended(tokens, own)
    united: dict[str, Any] = {}
    if len(files) > 1 or own or lost:
        united = unite([(source.label, tokenizer_json(source)) for source in files], tokens, own)
    plan, aligned = _aligned(choice, chosen, Target.of(tokens, rule.pad_to_multiple_of), united, kept)
    first_tuned = next(iter(choice.instructions.values()), None)
    if choice.preserve and first_tuned is not None and chosen.key not in choice.instructions:
        plan = _ending_like(plan, first_tuned, choice.vocabularies[first_tuned.source.key], tokens)
    return plan, aligned


def _ending_like(
    plan: TokenizerPlan, tuned: Instruction, before: Mapping[str, int], after: Mapping[str, int]
) -> TokenizerPlan:
    """The plan with another source's template, end token and generation settings, its ids those of the result."""
    ids = {key: value for key, value in text_config(tuned.source.config).items() if key.endswith("_token_id")}
    return replace(
        plan,
        template=tuned.template,
        generation=renumbered(tuned.generation, before, after),
        end=tuned.ends[0],
        config={**plan.config, **renumbered(ids, before, after)},
    )


def _aligned(
    choice: _Choice, chosen: Source, target: Target, united: Mapping[str, Any], kept: Sequence[Instruction] = ()
) -> tuple[TokenizerPlan, dict[str, Source]]:
    rule = choice.rule
    vocabularies = {key: found or choice.vocabularies[chosen.key] for key, found in choice.vocabularies.items()}
    known = known_rows(choice.everyone, vocabularies)
    base = rule.base.key if isinstance(rule.base, ModelReference) else None
    given = origins(target, known, base, rule, choice.words)
    spoken: tuple[str, ...] = ()
    if kept:
        tokens = [token for token in kept[0].tokens if token in target.tokens and token not in rule.tokens]
        given = given.forced_from([one.source.key for one in kept], tokens, target, known)
        spoken = _told(kept, tokens)
    if given.averaged:
        choice.notes.append(f"{given.averaged} tokens get the average of the sources that know them where one does not")
    if given.zero:
        told = ", ".join(map(repr, given.zero[:3]))
        choice.notes.append(f"no source has a row for {len(given.zero)} tokens ({told}): they are zero")
    if target.rows > len(target.tokens):
        choice.notes.append(
            f"{target.rows - len(target.tokens)} rows stand for no token: they are the mean of the others"
        )
    config: dict[str, Any] = {"vocab_size": target.rows, **_special_ids(chosen, choice.everyone[0])}
    aligned = align(choice.sources, target, known, given)
    changed = [source.label for key, source in aligned.items() if source is not choice.sources[key]]
    if changed:
        choice.notes.append(
            f"embedding and head of {', '.join(changed)} follow the tokens of {chosen.label}'s tokenizer"
        )
    return TokenizerPlan(chosen.folder, tokenizer=united, config=config, kept=spoken), aligned


def _told(kept: Sequence[Instruction], tokens: Sequence[str]) -> tuple[str, ...]:
    whose = ", ".join(one.source.label for one in kept)
    shown = ", ".join(map(repr, tokens[:6])) + (", …" if len(tokens) > 6 else "")
    how = f"{whose}: instruction-tuned ({kept[0].signs()}); its chat template, special tokens and end of turns are kept"
    rows = (
        f"the embedding and head rows of {len(tokens)} special tokens ({shown}) are those of {whose} in every model "
        "that goes in, so that no merge changes them"
    )
    return how, rows


def _extended(tokens: Mapping[str, int], new: Sequence[str]) -> dict[str, int]:
    start = max(tokens.values(), default=-1) + 1
    return {**tokens, **{token: start + i for i, token in enumerate(new)}}


def _special_ids(chosen: Source, donor: Source) -> dict[str, Any]:
    """The config's fields that name rows, from the source whose tokenizer it is."""
    if chosen is donor:
        return {}
    part = text_config(chosen.config)
    return {key: value for key, value in part.items() if key.endswith("_token_id")}


def _with_template(recipe: Recipe, plan: TokenizerPlan, choice: _Choice) -> TokenizerPlan:
    text = chat_template(recipe.chat_template, [source.folder for source in choice.everyone])
    own = template_of(plan.folder)
    if recipe.chat_template == "auto":
        whose = [source.label for source in choice.everyone if template_of(source.folder).strip() == text]
        choice.notes.append(f"chat template: {', '.join(whose)}'s" if text else "no source has a chat template")
    if not recipe.chat_template and not plan.template and not own and choice.preserve is not False:
        tuned = next((source for source in choice.everyone if template_of(source.folder)), None)
        if tuned is not None:
            text = template_of(tuned.folder)
            known = plan.tokenizer.get("model", {}).get("vocab") or vocabulary(plan.folder)
            tokens = set(known) if isinstance(known, Mapping) else {entry[0] for entry in known}
            lost = [token for token in added_tokens(tuned.folder) if token in text and token not in tokens]
            if lost:
                choice.notes.append(
                    f"the chat template of {tuned.label} is left out: it needs {', '.join(map(repr, lost[:3]))}, which "
                    "the tokenizer lacks; `tokenizer_source: union` keeps them"
                )
                text = ""
            else:
                choice.notes.append(f"the chat template of {tuned.label} is kept")
    return replace(plan, template=text) if text and text != own else plan
