"""Chat templates: render messages as the text format that a model was tuned on, by Hugging Face's
Jinja templates.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.text import json_texts
from rlhf_jax.text.folder_texts import TEMPLATE_JSON, TOKENIZER_CONFIG, FolderTexts

Message = Mapping[str, str]


class Refused(Refusal):
    """The refusal of a conversation by the template itself, which has called `raise_exception`."""


@dataclass(frozen=True)
class Template:
    """A template, with the texts of special tokens that it may use (`bos_token`, `eos_token`)."""

    text: str
    source: str = "the template"  # what messages call it
    tokens: Mapping[str, str] = field(default_factory=dict)
    date: str = ""  # the day that it is told where it asks for it, as 2025-01-31; none where empty


class Rendered(str):
    """A conversation rendered by a chat template, which writes all special tokens itself.

    The text is encoded without the tokenizer's BOS, as in `apply_chat_template` of transformers.
    """

    messages: tuple[
        Message, ...
    ]  # those that the text was made of; empty where only the text is known

    def __new__(cls, text: str, messages: Sequence[Message] = ()) -> "Rendered":
        rendered = super().__new__(cls, text)
        rendered.messages = tuple(messages)
        return rendered


# of open-instruct: the EOS ends a reply, a line break what is said before another turn
TULU = Template(
    "{% for message in messages %}"
    "{% if message['role'] in ('system', 'user', 'assistant') %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '' + eos_token }}{% endif %}"
    "{% if message['role'] != 'assistant' or not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ raise_exception('no role ' + message['role'] + ' in tulu') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    source="tulu",
)
# of Razin et al. 2025 (arXiv 2503.15477), who give the system the assistant's mark
PYTHIA = Template(
    "{% for message in messages %}"
    "{{ ('<|user|>' if message['role'] == 'user' else '<|assistant|>') + message['content'] + "
    "eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    source="pythia",
    tokens={"eos_token": "<|endoftext|>"},
)
NAMED = {template.source: template for template in (TULU, PYTHIA)}


def find(name_or_path: str) -> Template:
    """Finds a template by name, in a `.jinja` file, in a JSON file with a `chat_template`, or in a
    folder of such files.

    `text/folder_texts.py` has the precedence of a folder's files. A folder's special tokens come
    with its template. Of several templates `default` is taken. Raises Refusal if there is none.
    """
    if name_or_path in NAMED:
        return NAMED[name_or_path]
    path = Path(name_or_path)
    is_folder = path.is_dir() and bool(name_or_path)
    texts = FolderTexts(path if is_folder else path.parent)
    if is_folder and texts.chat_templates:
        return Template(*_default(path, texts.chat_templates), texts.special_tokens)
    path = path / TOKENIZER_CONFIG if is_folder else path
    if not path.is_file():
        raise Refusal(
            f"no chat template {name_or_path!r}; accepted: {', '.join(sorted(NAMED))}, a .jinja "
            f"file, a {TOKENIZER_CONFIG}, or"
            f" a folder with one of them, or with a {TEMPLATE_JSON}"
        )
    if path.suffix != ".json":
        return Template(json_texts.read_text(path), str(path), texts.special_tokens)
    return Template(*_default(path, texts.templates_of(path.name)), texts.tokens_of(path.name))


def _default(path: Path, templates: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """(text, source) of the template for plain conversations.

    Raises Refusal if there is none, or several without a default.
    """
    if not templates:
        raise Refusal(
            f"{path} has no chat_template; give a .jinja file or one of {', '.join(sorted(NAMED))}"
        )
    if "default" not in templates and len(templates) > 1:
        raise Refusal(f"{path} has the chat templates {', '.join(templates)}, none called default")
    return templates.get("default") or next(iter(templates.values()))


def render(
    template: Template,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    **variables: object,
) -> Rendered:
    """Renders messages.

    Args:
      template: to render with.
      messages: each with `role` and `content`.
      add_generation_prompt: end with the header of the assistant's reply.
      **variables: further variables of the template; they override its own tokens.

    Returns:
      The text, which keeps its messages.

    Raises:
      Refused: if the template itself refuses these messages, with its reason.
      Refusal: for a template that is faulty or lacks a variable.
    """
    import jinja2  # at its first use: most tasks have no template

    given = {**template.tokens, **variables, "add_generation_prompt": add_generation_prompt}
    if template.date:
        given["strftime_now"] = parse_date(template.date).strftime
    try:
        text = _compiled(template.text)(
            messages=[dict(message) for message in messages], tools=None, documents=None, **given
        )
    except jinja2.UndefinedError as error:
        if "'strftime_now' is undefined" in str(error.message):
            raise Refusal(
                f"chat template {template.source} asks for today's date (strftime_now), and a "
                "prompt must not depend on the"
                " day: set task.date to a day, as 2025-01-31"
            ) from None
        known = ", ".join(sorted(given))
        raise Refusal(
            f"chat template {template.source}: {error.message}; given: messages, {known}"
        ) from None
    except Refused as error:
        raise Refused(f"chat template {template.source}: {' '.join(str(error).split())}") from None
    except (
        jinja2.TemplateError,
        TypeError,
        LookupError,
        ArithmeticError,
        ValueError,
        RecursionError,
    ) as error:
        raise Refusal(f"chat template {template.source}: {' '.join(str(error).split())}") from None
    return Rendered(text, messages)


def parse_date(date: str) -> datetime:
    """Parses `task.date`. Raises Refusal if it is no date."""
    try:
        return datetime.fromisoformat(date)
    except ValueError:
        raise Refusal(
            f"task.date is {date!r}; accepted: a day, as 2025-01-31, or nothing"
        ) from None


@lru_cache(maxsize=16)
def _compiled(text: str) -> Callable[..., str]:
    """Compiles a template in a sandbox that is immutable and deterministic.

    `strftime_now` is undefined unless a date is given, because a prompt must not depend on the day.
    Hugging Face always defines it. Templates that test for it then use a date of their own.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Renders the body of `{% generation %}`, the mark of a model's reply, as plain text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise Refused(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    del environment.globals["lipsum"], environment.filters["random"]
    return environment.from_string(text).render


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
):
    """Plain JSON, for Jinja's filter `tojson`, which would escape characters of HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
