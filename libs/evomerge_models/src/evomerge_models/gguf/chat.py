"""A Jinja chat template as a template of Ollama's, in Go's language, where the two say the same.

The Jinja text is not translated: conversations of marked words are rendered, what stands between the marks is taken
for the form, and the form must then give what Jinja gives for every probe. A template that does more (dates, turns left
out) does not pass, and has no form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

Turns = Sequence[tuple[str, str]]
"""(role, text) of each message."""
Render = Callable[[Turns], str]
MAX_TEMPLATE_CHARACTERS = 100_000
_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"


@dataclass(frozen=True)
class ChatForm:
    """What stands around the messages of a conversation, which begins with the user and takes turns.

    Attributes:
        start: before the first message of the user, where there is no system message.
        system: before and after a system message.
        system_last: the system message stands before the last message of the user, not before the first.
        reply: between a message of the user and the assistant's.
        again: between the assistant's message and the user's next.
        end: after the last message of the user: there the model goes on.

    """

    start: str
    system: tuple[str, str]
    system_last: bool
    reply: str
    again: str
    end: str

    def render(self, turns: Turns) -> str:
        """Returns a conversation as the model reads it, as the Go template gives it."""
        system = next((text for role, text in turns if role == _SYSTEM), "")
        talk = [(role, text) for role, text in turns if role != _SYSTEM]
        parts = []
        for index, (role, text) in enumerate(talk):
            if role == _USER:
                is_last = index == len(talk) - 1
                parts.append(self.again if index else "" if system and not self.system_last else self.start)
                if system and (is_last if self.system_last else index == 0):
                    parts += [self.system[0], system, self.system[1]]
                parts += [text, self.end if is_last else ""]
            else:
                parts += [self.reply, text]
        return "".join(parts)

    def go_template(self) -> str:
        """Writes the same in Go's language, with Ollama's names."""
        before, after = self.system
        if self.system_last:
            opening = f"{{{{ if $first }}}}{self.start}{{{{ else }}}}{self.again}{{{{ end }}}}"
            opening += f"{{{{ if and $last $.System }}}}{before}{{{{ $.System }}}}{after}{{{{ end }}}}"
        else:
            opening = f"{{{{ if not $first }}}}{self.again}"
            opening += (
                f"{{{{ else if $.System }}}}{before}{{{{ $.System }}}}{after}{{{{ else }}}}{self.start}{{{{ end }}}}"
            )
        return (
            "{{ $first := true }}{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq .Role "user" }}}}{opening}{{{{ $first = false }}}}{{{{ .Content }}}}'
            f'{{{{ if $last }}}}{self.end}{{{{ end }}}}{{{{ else if eq .Role "assistant" }}}}{self.reply}'
            "{{ .Content }}{{ end }}{{ end }}"
        )

    @property
    def is_plain(self) -> bool:
        """Tells whether the form can stand in a Go template inside a Modelfile."""
        texts = (self.start, *self.system, self.reply, self.again, self.end)
        return not any(sign in text for text in texts for sign in ("{{", "}}", '"""'))


def chat_form(template: str, tokens: dict[str, str], *, adds_bos: bool) -> ChatForm | None:
    """Finds the form of a chat template; None where it has none that gives the same for every probe.

    Args:
        template: Jinja, as tokenizer_config.json or a GGUF file holds it.
        tokens: what the template may name: bos_token, eos_token …
        adds_bos: the tokenizer puts the first token before a text itself, so that the form must not.

    """
    if not template or len(template) > MAX_TEMPLATE_CHARACTERS or "strftime_now" in template:
        return None
    bos = tokens.get("bos_token", "") if adds_bos else ""
    try:
        render = _renderer(template, tokens)

        def plain(turns: Turns) -> str:
            return render(turns).removeprefix(bos)

        form = _form(plain)
        if form is None or not form.is_plain:
            return None
        return form if all(form.render(turns) == plain(turns) for turns in _probes(plain)) else None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _form(render: Render) -> ChatForm | None:
    talk = [(_USER, "⟦u1⟧"), (_ASSISTANT, "⟦a1⟧"), (_USER, "⟦u2⟧")]
    start, reply, again, end = _between(render(talk), ["⟦u1⟧", "⟦a1⟧", "⟦u2⟧"])
    if not _takes_system(render):  # as Gemma's: then it stands before the user's first words
        return ChatForm(start, (start, "\n\n"), False, reply, again, end)
    whole = render([(_SYSTEM, "⟦s⟧"), *talk])
    if whole.index("⟦s⟧") < whole.index("⟦u1⟧"):
        before, after, *_ = _between(whole, ["⟦s⟧", "⟦u1⟧", "⟦a1⟧", "⟦u2⟧"])
        return ChatForm(start, (before, after), False, reply, again, end)
    *_, middle, after, _ = _between(whole, ["⟦u1⟧", "⟦a1⟧", "⟦s⟧", "⟦u2⟧"])
    if not middle.startswith(again):
        return None
    return ChatForm(start, (middle.removeprefix(again), after), True, reply, again, end)


def _between(text: str, marks: list[str]) -> list[str]:
    """What stands before, between and after marks, each of which is there once, in this order."""
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found or mark in text:
            raise ValueError(f"no single {mark}")
        parts.append(part)
    return [*parts, text]


def _takes_system(render: Render) -> bool:
    try:
        return "⟦s⟧" in render([(_SYSTEM, "⟦s⟧"), (_USER, "⟦u1⟧")])
    except jinja2.TemplateError:
        return False


def _probes(render: Render) -> list[Turns]:
    """Conversations of every length and shape that a form knows; with a system message where the template takes one."""
    user, assistant = (_USER, "What is 2 + 2?\nAnd why?"), (_ASSISTANT, "It is 4.\n\nBecause {so}.")
    talks = [[user], [user, assistant, user], [user, assistant] * 2 + [user], [user, assistant] * 3 + [(_USER, "ok")]]
    if not _takes_system(render):
        return list(talks)
    return [*talks, *([(_SYSTEM, "Be kind.\nBe brief."), *talk] for talk in talks)]


def _renderer(template: str, tokens: dict[str, str]) -> Render:
    """Renders as transformers does: its options, filters and functions, in a sandbox."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    compiled = environment.from_string(template)

    def render(turns: Turns) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        text = compiled.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **tokens)
        return str(text)

    return render
