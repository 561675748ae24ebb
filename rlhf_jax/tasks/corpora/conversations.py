"""Turns the messages of published conversations into the prompt of a chat template and its reply.

A row of well-formed messages may still be useless: its last message is no reply, a role is unknown,
or the template itself refuses it, as Gemma's does with a system message. Such a row is left out and
counted; it does not end the run.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.corpora import row_files
from rlhf_jax.tasks.corpora.published_files import LeftOut
from rlhf_jax.text import chat

Messages = list[dict[str, str]]
ROLES = ("system", "user", "assistant")


def template(name_or_path: str, bos_token: str, eos_token: str, date: str) -> chat.Template:
    """Returns the chat template of a config.

    Args:
      name_or_path: a name, or a file or folder: see `chat.find`.
      bos_token, eos_token: texts that the template may name; "": those that come with it.
      date: the day that the template is given as today, as 2025-01-31; "": none.

    Raises:
      Refusal: if there is no such template, or `date` is no day.
    """
    if date:
        chat.parse_date(date)
    base = chat.find(name_or_path)
    given = {"bos_token": bos_token, "eos_token": eos_token}
    return replace(
        base,
        tokens={**base.tokens, **{name: text for name, text in given.items() if text}},
        date=date,
    )


def recipe(template: chat.Template) -> tuple[str, ...]:
    """Returns every property of a template that the text of a prompt depends on."""
    return (
        template.text,
        template.date,
        *(f"{name}={text}" for name, text in sorted(template.tokens.items())),
    )


def prompts(template: chat.Template) -> Callable[[str, Messages], dict[str, str]]:
    """Returns a function (location, messages) -> fields of a record: the prompt, which ends before
    the assistant's reply, and the messages.
    """

    def prompt(location: str, context: Messages) -> dict[str, str]:
        try:
            text = chat.render(template, context, add_generation_prompt=True)
        except chat.Refused as error:
            raise LeftOut(str(error)) from None
        except Refusal as error:
            raise Refusal(
                f"{location}: {error}; task.bos_token and task.eos_token give texts of tokens"
            ) from None
        return {"prompt": text, "messages": json.dumps(context, ensure_ascii=False)}

    return prompt


def turns(
    location: str, row: row_files.Row, key: str, template: chat.Template
) -> tuple[Messages, str]:
    """Splits a conversation into the messages before the assistant's last reply, and that reply.

    Args:
      location: the file and row, for messages.
      row: whose field is read.
      key: of the field.
      template: whose EOS is removed from the end of the reply.

    Returns:
      The messages, and the text of the reply.

    Raises:
      LeftOut: if the conversation does not end in a reply to a message, or has an unknown role.
      Refusal: if the field is no conversation.
    """
    held = row.get(key)
    if not isinstance(held, list) or not all(isinstance(message, dict) for message in held):
        raise Refusal(
            f"{location}: {key!r} is {row_files.short(held)}; accepted: a list of messages with role "
            "and content"
        )
    messages = [
        _message(f"{location}, message {number} of {key!r}", each)
        for number, each in enumerate(held, start=1)
    ]
    roles = [message["role"] for message in messages]
    if len(roles) < 2 or roles[-1] != "assistant" or not set(roles) <= set(ROLES):
        raise LeftOut(
            f"{key!r} has the roles {', '.join(roles) or 'none'}; accepted: {', '.join(ROLES)}, "
            "with an assistant's reply at"
            " the end"
        )
    return messages[:-1], without_eos(messages[-1]["content"], template.tokens.get("eos_token", ""))


def without_eos(text: str, eos: str) -> str:
    """Removes the EOS texts at the end of a text, because the pipeline adds an EOS.

    Args:
      text: of a completion.
      eos: the text of the EOS; "": nothing is removed.

    Returns:
      The text before the EOS; white space after an EOS is removed with it.
    """
    while eos and text.rstrip().endswith(eos):
        text = text.rstrip().removesuffix(eos)
    return text


def _message(location: str, message: dict[str, Any]) -> dict[str, str]:
    return {
        key: row_files.text(location, message, key, empty=key == "content")
        for key in ("role", "content")
    }
