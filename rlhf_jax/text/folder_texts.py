"""Reads the text settings of a checkpoint folder: special tokens, tokens added to the vocabulary,
ends, chat templates.

Several files of a folder set the same thing. This module is the one reader of all of them. Their
precedence is that of transformers 5:

* Special tokens (`bos_token`, `eos_token`, `pad_token`, ...): `tokenizer_config.json`;
  `special_tokens_map.json` fills what it leaves out, and overrules it in folders whose
  `tokenizer_config.json` has no `added_tokens_decoder` (files of old versions).
* Added tokens: `added_tokens_decoder` of `tokenizer_config.json`, else `added_tokens.json`; then
  special tokens that the vocabulary lacks; then `additional_special_tokens` or
  `extra_special_tokens`.
* A BOS before every text: the post-processor of `tokenizer.json`. `add_bos_token` and
  `add_eos_token` are not read.
* The chat template: `chat_template.jinja`, with others in `additional_chat_templates/`;
  `chat_template` of `tokenizer_config.json`; `chat_template.json`.
* Ends of a text: a tokenizer appends the `eos_token`. Every EOS that any of these files names ends
  a row, and so does every `eos_token_id` of `generation_config.json` and `config.json`; see `Ends`
  for ids that are no special tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal
from rlhf_jax.text import json_texts
from rlhf_jax.text.json_texts import short

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_CONFIG, SPECIAL, ADDED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
JINJA, TEMPLATE_JSON, MORE_TEMPLATES = (
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DECODER = "added_tokens_decoder"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    """A token that a file adds to the vocabulary: its text, the id that the file gives it, if any,
    and how it is matched.
    """

    text: str
    source: str
    id: int | None = None
    flags: Mapping[str, bool] | None = None  # of the tokenizers library; None: a special token


@dataclass(frozen=True)
class Ends:
    """The ids of `eos_token_id` in a file of the model.

    `firm` ids must be special tokens of the vocabulary. Those of `config.json`, and of a
    `generation_config.json` that was made from it, need not be: transformers writes the default of
    the config's class there (2 for Llama), for any vocabulary. Such an id is then ignored.
    """

    source: str
    ids: tuple[int, ...]
    firm: bool


class FolderTexts:
    """Reads the files of one folder, each at its first use.

    Raises Refusal that names the file if it cannot be read, or if a value has the wrong type.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, dict[str, Any]] = {}

    def json(self, name: str) -> dict[str, Any]:
        """The object that a file of the folder holds; empty where there is no such file."""
        if name not in self._read:
            file = self.folder / name
            self._read[name] = json_texts.read_object(file) if file.is_file() else {}
        return self._read[name]

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the special tokens by their names: the usual ones (`bos_token`, ...), then names
        of the tokenizer's own.
        """
        config, special = self._named(TOKENIZER_CONFIG), self._named(SPECIAL)
        tokens = special | config if DECODER in self.json(TOKENIZER_CONFIG) else config | special
        return {key: tokens[key] for key in (*NAMES, *tokens) if key in tokens}

    def tokens_of(self, name: str) -> dict[str, str]:
        """Texts of the special tokens for the templates of one JSON file: the folder's, overridden
        by those of the file.
        """
        known = (TOKENIZER_CONFIG, SPECIAL, TEMPLATE_JSON)
        return self.special_tokens if name in known else self.special_tokens | self._named(name)

    def _named(self, name: str) -> dict[str, str]:
        values = self.json(name)
        named = {
            key: self._token(name, key, values[key]) for key in NAMES if values.get(key) is not None
        }
        if named.get("eos_token") == "":
            raise Refusal(
                f"{self.folder / name}: 'eos_token' is \"\"; accepted: a text that is not empty, "
                "or null"
            )
        extra = values.get("extra_special_tokens")
        own = {
            key: value
            for key, value in values.items()
            if key.endswith("_token") and key not in NAMES
        }
        own |= extra if isinstance(extra, dict) else {}
        named |= {key: value for key, value in own.items() if isinstance(value, str)}
        return {key: text for key, text in named.items() if text}

    def _token(self, name: str, key: str, value: object) -> str:
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise Refusal(
                f"{self.folder / name}: {key!r} is {short(value)}; accepted: a text, an object "
                "with the text as its"
                " 'content', or null"
            )
        return text

    @cached_property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        """Tokens that the files add to the vocabulary, in the order in which they are added.

        A token without an id takes the next free one. A token that the vocabulary has keeps its id.
        """
        config = self.json(TOKENIZER_CONFIG)
        decoder = self._decoder() if DECODER in config else self._legacy_added()
        named = [AddedToken(text, self._source(key)) for key, text in self.special_tokens.items()]
        return (*decoder, *named, *self._listed(TOKENIZER_CONFIG), *self._listed(SPECIAL))

    def _source(self, key: str) -> str:
        name = TOKENIZER_CONFIG if key in self.json(TOKENIZER_CONFIG) else SPECIAL
        return f"{self.folder / name}: {key!r}"

    def _decoder(self) -> list[AddedToken]:
        file, entries = self.folder / TOKENIZER_CONFIG, self.json(TOKENIZER_CONFIG)[DECODER]
        if not isinstance(entries, dict):
            raise Refusal(
                f"{file}: {DECODER!r} is {short(entries)}; accepted: an object of tokens by their "
                "ids"
            )
        tokens = []
        for key, entry in entries.items():
            location = f"{file}: {DECODER!r} of {key!r}"
            content = entry.get("content") if isinstance(entry, dict) else None
            if (
                not key.isdecimal()
                or not key.isascii()
                or not isinstance(content, str)
                or not content
            ):
                raise Refusal(
                    f"{location} is {short(entry)}; accepted: an id, and an object with a text as "
                    "its 'content'"
                )
            flags = {flag: entry[flag] for flag in FLAGS if flag in entry}
            if not all(isinstance(value, bool) for value in flags.values()):
                raise Refusal(
                    f"{location} is {short(entry)}; accepted for {', '.join(FLAGS)}: true or false"
                )
            tokens.append(AddedToken(content, location, int(key), flags))
        return sorted(tokens, key=lambda token: token.id or 0)

    def _legacy_added(self) -> list[AddedToken]:
        special = {*self.special_tokens.values(), *(token.text for token in self._listed(SPECIAL))}
        tokens = []
        for text, identity in self.json(ADDED).items():
            location = f"{self.folder / ADDED}: {text!r}"
            if (
                isinstance(identity, bool)
                or not isinstance(identity, int)
                or identity < 0
                or not text
            ):
                raise Refusal(f"{location} is {short(identity)}; accepted: an id of 0 or more")
            flags = {"special": text in special, "normalized": text not in special}
            tokens.append(AddedToken(text, location, identity, flags))
        return sorted(tokens, key=lambda token: token.id or 0)

    def _listed(self, name: str) -> list[AddedToken]:
        values = self.json(name)
        if name == SPECIAL and DECODER in self.json(TOKENIZER_CONFIG):
            return []
        key = (
            "extra_special_tokens"
            if values.get("extra_special_tokens")
            else "additional_special_tokens"
        )
        listed = values.get(key)
        if listed is None or (isinstance(listed, dict) and key == "extra_special_tokens"):
            return []
        location = f"{self.folder / name}: {key!r}"
        if not isinstance(listed, list):
            raise Refusal(f"{location} is {short(listed)}; accepted: a list of tokens")
        texts = [self._token(name, key, value) for value in listed]
        return [AddedToken(text, location) for text in texts if text]

    @cached_property
    def eos_texts(self) -> tuple[str, ...]:
        """Every EOS that the tokenizer's files name; the first is the one that the tokenizer
        appends.
        """
        named = (self.special_tokens, self._named(TOKENIZER_CONFIG), self._named(SPECIAL))
        return tuple(
            dict.fromkeys(tokens["eos_token"] for tokens in named if "eos_token" in tokens)
        )

    def model_ends(self) -> list[Ends]:
        """The EOS ids of the model's files: those of `generation_config.json` first."""
        generation, config = self.json(GENERATION), self.json(CONFIG)
        made_from_config = generation.get("_from_model_config") is True
        named = [
            Ends(str(self.folder / name), self._ids(name, values.get("eos_token_id")), firm)
            for name, values, firm in (
                (GENERATION, generation, not made_from_config),
                (CONFIG, config, False),
            )
        ]
        return [ends for ends in named if ends.ids]

    def _ids(self, name: str, value: object) -> tuple[int, ...]:
        listed = [] if value is None else value if isinstance(value, list) else [value]
        ids = [
            identity
            for identity in listed
            if isinstance(identity, int) and not isinstance(identity, bool) and identity >= 0
        ]
        if len(ids) < len(listed):
            raise Refusal(
                f"{self.folder / name}: 'eos_token_id' is {short(value)}; accepted: an id of 0 or "
                "more, a list of them, or"
                " null"
            )
        return tuple(dict.fromkeys(ids))

    @cached_property
    def chat_templates(self) -> dict[str, tuple[str, str]]:
        """(text, source) of the chat templates by their names; "default" is the one for plain
        conversations.
        """
        more = sorted((self.folder / MORE_TEMPLATES).glob("*.jinja"))
        files = {file.stem: file for file in more} | {"default": self.folder / JINJA}
        templates = {
            name: (json_texts.read_text(file), str(file))
            for name, file in files.items()
            if file.is_file()
        }
        for name in (TOKENIZER_CONFIG, TEMPLATE_JSON):
            templates = templates or self.templates_of(name)
        return templates

    def templates_of(self, name: str) -> dict[str, tuple[str, str]]:
        """The chat templates of one JSON file: a text, or a list of named ones."""
        file, value = self.folder / name, self.json(name).get("chat_template")
        if value is None:
            return {}
        listed = [{"name": "default", "template": value}] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise Refusal(
                f"{file}: 'chat_template' is {short(value)}; accepted: a text, or a list of named "
                "ones"
            )
        location = f"{file}: 'chat_template'"
        return {
            json_texts.text(location, each, "name"): (_template(location, each), str(file))
            for each in listed
        }


def _template(location: str, entry: Mapping[str, Any]) -> str:
    return json_texts.text(location, entry, "template", empty=True)
