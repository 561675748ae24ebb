"""Chat templates: messages to the text that a model was tuned on, as Hugging Face's Jinja templates say it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal

JINJA, CONFIG = "chat_template.jinja", "tokenizer_config.json"
Message = Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """A template, and the texts of special tokens that it may name (`bos_token`, `eos_token`)."""

    text: str
    source: str = "the template"  # what messages call it
    tokens: Mapping[str, str] = field(default_factory=dict)


TULU = Template(  # of open-instruct: the EOS ends a reply, a line break what is said before another turn
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
PYTHIA = Template(  # of Razin et al. 2025 (arXiv 2503.15477), who give the system the assistant's mark
    "{% for message in messages %}"
    "{{ ('<|user|>' if message['role'] == 'user' else '<|assistant|>') + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    source="pythia",
    tokens={"eos_token": "<|endoftext|>"},
)
NAMED = {template.source: template for template in (TULU, PYTHIA)}


def find(name_or_path: str) -> Template:
    """A named template, that of a `.jinja` file or a `tokenizer_config.json`, or of the folder that holds either.

    A `chat_template.jinja` comes before a `tokenizer_config.json`, which gives the special tokens for both; of a list of
    templates the one called `default` is taken, or the only one. Raises Refusal where there is none.
    """
    if name_or_path in NAMED:
        return NAMED[name_or_path]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / (JINJA if (path / JINJA).is_file() else CONFIG)
    if not name_or_path or not path.is_file():
        raise Refusal(
            f"no chat template {name_or_path!r}; accepted: {', '.join(sorted(NAMED))}, a .jinja file, a {CONFIG}, or a"
            " folder with one of them"
        )
    if path.suffix != ".json":
        return Template(_read(path), str(path), _tokens(_config(path.with_name(CONFIG))))
    config = _config(path)
    return Template(_default(path, config.get("chat_template")), str(path), _tokens(config))


def render(template: Template, messages: Sequence[Message], *, add_generation_prompt: bool, **variables: Any) -> str:
    """The text of messages, each with `role` and `content`; `variables` come before the template's own tokens.

    Raises Refusal with what the template says, or what is wrong with it.
    """
    import jinja2

    given = {**template.tokens, **variables, "add_generation_prompt": add_generation_prompt}
    try:
        compiled = _compiled(template.text)
        return compiled.render(messages=[dict(message) for message in messages], tools=None, documents=None, **given)
    except jinja2.UndefinedError as error:
        known = ", ".join(sorted(given))
        raise Refusal(f"chat template {template.source}: {error.message}; given: messages, {known}") from None
    except (jinja2.TemplateError, TypeError, LookupError, ArithmeticError, ValueError) as error:
        raise Refusal(f"chat template {template.source}: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=16)
def _compiled(text: str) -> Any:
    """The template, in a sandbox that may change nothing.

    `strftime_now` is left undefined, though Hugging Face gives it: a prompt must not depend on the day. Templates that
    ask for it first then take the date that they hold.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model says; here its body is text like any other."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    return environment.from_string(text)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    """JSON as it is: Jinja's own filter of this name escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _default(path: Path, found: Any) -> str:
    """The template of a tokenizer_config.json: a text, or a list of named ones."""
    if isinstance(found, list) and all(isinstance(each, dict) for each in found):
        named = {each.get("name"): each.get("template") for each in found}
        found = named.get("default", next(iter(named.values()))) if "default" in named or len(named) == 1 else found
        if found is None or isinstance(found, list):
            raise Refusal(f"{path} has the chat templates {', '.join(map(str, named)) or 'none'}, none called default")
    if not isinstance(found, str):
        raise Refusal(f"{path} has no chat_template; give a .jinja file or one of {', '.join(sorted(NAMED))}")
    return found


def _tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of a tokenizer_config.json, each a text or an object with `content`."""
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _config(file: Path) -> Mapping[str, Any]:
    """A tokenizer_config.json; empty where it is not there."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise Refusal(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refusal(f"{file} is not a JSON object")
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Refusal(f"{file} is not a text in UTF-8") from None
