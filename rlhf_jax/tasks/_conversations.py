"""Published conversations: messages to the prompt of a chat template and the reply that follows it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_jax.hub import chat
from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks import _rows

Messages = list[dict[str, str]]
ROLES = ("system", "user", "assistant")


def template(name_or_path: str, bos_token: str, eos_token: str) -> chat.Template:
    """The chat template of a config; its special tokens where they are given, else the template's own."""
    found = chat.find(name_or_path)
    given = {"bos_token": bos_token, "eos_token": eos_token}
    return replace(found, tokens={**found.tokens, **{name: text for name, text in given.items() if text}})


def recipe(found: chat.Template) -> tuple[str, ...]:
    """What of a template the text of a prompt depends on."""
    return (found.text, *(f"{name}={text}" for name, text in sorted(found.tokens.items())))


def prompts(found: chat.Template) -> Callable[[str, Messages], str]:
    """`(where, messages) -> prompt`: the text up to where the assistant's reply begins."""

    def prompt(where: str, context: Messages) -> str:
        try:
            return chat.render(found, context, add_generation_prompt=True)
        except ValueError as error:
            raise Refusal(f"{where}: {error}; task.bos_token and task.eos_token give texts of tokens") from None

    return prompt


def turns(where: str, row: _rows.Row, key: str) -> tuple[Messages, str]:
    """What was said before the last reply of the assistant's, and that reply; a system message may come first.

    Raises Refusal where the field is no such conversation.
    """
    found = row.get(key)
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise Refusal(f"{where}: {key!r} is {_rows.short(found)}; accepted: a list of messages with role and content")
    messages = [_message(f"{where}, message {number} of {key!r}", each) for number, each in enumerate(found, start=1)]
    roles = [message["role"] for message in messages]
    if roles[-1:] != ["assistant"] or "user" not in roles or "system" in roles[1:]:
        raise Refusal(
            f"{where}: {key!r} has the roles {', '.join(roles) or 'none'}; accepted: a system first or none, a user, and"
            " an assistant at the end"
        )
    return messages[:-1], messages[-1]["content"]


def _message(where: str, message: dict[str, Any]) -> dict[str, str]:
    role, content = _rows.text(where, message, "role"), _rows.text(where, message, "content", empty=True)
    if role not in ROLES:
        raise Refusal(f"{where}: 'role' is {role!r}; accepted: {', '.join(ROLES)}")
    return {"role": role, "content": content}
