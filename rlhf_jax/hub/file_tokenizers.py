"""Tokenizers of files: sentencepiece models and Hugging Face's tokenizer.json, with their own ids."""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal


class FileTokenizer:
    """A tokenizer of a file: its own ids, and its library's two functions."""

    def __init__(
        self,
        vocab_size: int,
        eos_id: int,
        pad_id: int,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
        prefix_ids: tuple[int, ...] = (),
        folder: Path | None = None,
        encode_many: Callable[[Sequence[str]], list[list[int]]] | None = None,
    ):
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.prefix_ids = prefix_ids
        self.folder = folder  # where its file lies
        self.encode_many = encode_many or (lambda texts: [encode(text) for text in texts])
        self._encode = encode
        self._decode = decode

    def encode(self, text: str) -> list[int]:
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._decode([int(i) for i in ids if i not in (self.pad_id, self.eos_id)])


def sentencepiece(path: str, bos: bool = False) -> FileTokenizer:
    """A sentencepiece model file; pad is its EOS where it has no pad. With `bos`, prompts begin with its BOS.

    Raises Refusal when the file is missing, is not such a model, or has no EOS, or no BOS where one is asked for.
    """
    file = _existing(path, "a sentencepiece .model file")
    library: Any = import_module("sentencepiece")
    try:
        processor = library.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise Refusal(f"{file} is not a sentencepiece model: {error}") from None
    eos_id, pad_id = processor.eos_id(), processor.pad_id()
    if eos_id < 0:
        raise Refusal(f"{file} has no EOS piece; train the model with an eos_id of 0 or more")
    if bos and processor.bos_id() < 0:
        raise Refusal(f"tokenizer.bos is true, but {file} has no BOS piece")
    return FileTokenizer(
        vocab_size=processor.get_piece_size(),
        eos_id=eos_id,
        pad_id=eos_id if pad_id < 0 else pad_id,
        encode=lambda text: list(processor.encode(text)),
        decode=processor.decode,
        prefix_ids=(processor.bos_id(),) if bos else (),
        folder=file.parent,
    )


EOS_TEXTS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
PAD_TEXTS = ("<|padding|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")


def hugging_face(path: str, eos: str = "") -> FileTokenizer:
    """A `tokenizer.json` of the tokenizers library, or the folder that holds it.

    The EOS is `eos` where given, else `eos_token` of the `tokenizer_config.json` beside it, else the one customary name
    among its added tokens. Pad likewise, and the EOS where there is none.
    Raises Refusal when the file is missing, is not a tokenizer, or tells no EOS.
    """
    place = Path(path)
    file = _existing(str(place / "tokenizer.json") if place.is_dir() else path, "a tokenizer.json file or its folder")
    try:
        library: Any = import_module("tokenizers").Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception
        raise Refusal(f"{file} is not a tokenizer.json of the tokenizers library: {error}") from None
    library.no_padding()
    library.no_truncation()
    beside = _token_texts(file.with_name("tokenizer_config.json"))
    ids = {token.content: identity for identity, token in library.get_added_tokens_decoder().items()}
    eos_text = eos or beside.get("eos_token") or _only([text for text in EOS_TEXTS if text in ids])
    eos_id = library.token_to_id(eos_text) if eos_text else None
    if eos_id is None:
        asked = f"has no token {eos_text!r} for the EOS" if eos_text else "does not tell its EOS"
        raise Refusal(f"{file} {asked}; set tokenizer.eos to one of its tokens, added ones: {', '.join(ids) or 'none'}")
    pad_text = beside.get("pad_token") or next((text for text in PAD_TEXTS if text in ids), None)
    pad_id = library.token_to_id(pad_text) if pad_text else None
    return FileTokenizer(
        vocab_size=library.get_vocab_size(with_added_tokens=True),
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
        encode=lambda text: library.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: library.decode(ids, skip_special_tokens=False),
        prefix_ids=_prefix(library),
        folder=file.parent,
        encode_many=lambda texts: [
            found.ids for found in library.encode_batch_fast(list(texts), add_special_tokens=False)
        ],
    )


def _prefix(library: Any) -> tuple[int, ...]:
    """What the file's post-processor puts before a text; what it puts after it (an EOS) is the pipeline's to add."""
    with_special = library.encode("a", add_special_tokens=True).ids
    plain = library.encode("a", add_special_tokens=False).ids
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return tuple(with_special[:start])
    return ()


def _existing(path: str, wanted: str) -> Path:
    if not path or not Path(path).is_file():
        raise Refusal(f"tokenizer.path {path!r} is not there; it should name {wanted}")
    return Path(path)


def _only(texts: list[str]) -> str | None:
    return texts[0] if len(texts) == 1 else None


def _token_texts(file: Path) -> dict[str, str]:
    """`*_token` entries of a tokenizer_config.json, each a text or an object with `content`; empty without the file."""
    if not file.is_file():
        return {}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise Refusal(f"{file} is not JSON: {error}") from None
    named = {key: value for key, value in entries.items() if key.endswith("_token") and value is not None}
    return {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
