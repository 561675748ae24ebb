"""Tokenizers of files: sentencepiece models and Hugging Face's tokenizer.json, with their own ids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_jax.hub import continuing, ends
from rlhf_jax.hub.folder_texts import FolderTexts
from rlhf_jax.hub.pieces import Pieces
from rlhf_jax.refusal import MissingInput, Refusal

EOS_TEXTS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
PAD_TEXTS = ("<|padding|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")


@dataclass(frozen=True)
class Codec:
    """A tokenizer's file and folder, read: text to ids and back, whatever ends a text."""

    file: Path
    texts: FolderTexts
    size: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    encode_many: Callable[[Sequence[str]], list[list[int]]]
    id_of: Callable[[str], int | None]
    vocabulary: Callable[[], dict[str, int]]
    marks: Mapping[str, int]  # special and added tokens by the texts that they are recognised by
    prefix_ids: tuple[int, ...] = ()

    def within(self, size: int, beyond: Mapping[str, int]) -> "Codec":
        """The same for a model of `size` tokens. Encoding a text that has a token `beyond` them raises Refusal."""
        names = {identity: text for text, identity in beyond.items()}

        def checked(ids: list[int]) -> list[int]:
            unknown = next((identity for identity in ids if identity >= size), None)
            if unknown is not None:
                raise Refusal(
                    f"a text holds {names[unknown]!r}, token {unknown} of {self.file}, but model.vocab_size is {size}"
                )
            return ids

        return replace(
            self,
            size=size,
            encode=lambda text: checked(self.encode(text)),
            encode_many=lambda many: [checked(ids) for ids in self.encode_many(many)],
            vocabulary=lambda: {text: identity for text, identity in self.vocabulary().items() if identity < size},
            marks={text: identity for text, identity in self.marks.items() if identity < size},
        )

    def named(self, name: str) -> int | None:
        """The id of a special token that the folder names (`pad_token`); None where it names none."""
        text = self.texts.special_tokens.get(name)
        return None if text is None else self.id_of(text)

    def ends(self, asked: str, model: Path | None, own: int | None = None) -> tuple[int, ...]:
        """Every id that ends a row: see `hub/ends.py`. `model` is the policy's folder, where it is another one."""
        texts = {identity: text for text, identity in self.marks.items()}
        known = ends.Vocabulary(
            self.file, self.size, self.id_of, lambda i: texts.get(i) or self._text_of(i), frozenset(texts)
        )
        of_model = self.texts if model is None else FolderTexts(model)
        of_model = of_model if of_model.model_ends() else self.texts
        return ends.find(known, asked, self.texts, of_model, own, () if own is not None else EOS_TEXTS)

    def _text_of(self, identity: int) -> str | None:
        return next((text for text, found in self.vocabulary().items() if found == identity), None)


class FileTokenizer:
    """A tokenizer of a file, with its own ids."""

    def __init__(self, codec: Codec, eos_ids: tuple[int, ...], pad_id: int):
        self.vocab_size = codec.size
        self.eos_ids = eos_ids
        self.eos_id = eos_ids[0]
        self.pad_id = pad_id
        self.prefix_ids = codec.prefix_ids
        self.file = codec.file
        self.folder = codec.file.parent
        self.marks = codec.marks
        self.encode_many = codec.encode_many
        self.vocabulary = codec.vocabulary
        self._codec = codec
        self._dropped = frozenset((pad_id, *eos_ids))
        self._continuation = continuing.find(codec.encode, codec.decode, codec.marks)
        self.looks_back = self._continuation is not None and self._continuation.looks_back

    def encode(self, text: str) -> list[int]:
        return self._codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._codec.decode(self._kept(ids))

    def encode_after(self, before: int | None, text: str) -> list[int]:
        return self.encode(text) if self._continuation is None else self._continuation.encode(before, text)

    def decode_after(self, before: int | None, ids: Sequence[int]) -> str:
        kept = self._kept(ids)
        return self._codec.decode(kept) if self._continuation is None else self._continuation.decode(before, kept)

    def within(self, size: int) -> "FileTokenizer":
        """The tokenizer for a model that knows `size` tokens, fewer than the files have.

        Folders name tokens that their model has no row for, such as those of a picture, or a pad. No text of a run should
        have one: encoding a text that has raises Refusal. So does this where ordinary text or the EOS needs such a token.
        """
        beyond = {text: identity for text, identity in self.vocabulary().items() if identity >= size}
        ordinary = [text for text in beyond if text not in self.marks]
        if ordinary or self.eos_id >= size:
            needed = ordinary[0] if ordinary else "its EOS"
            raise Refusal(
                f"model.vocab_size is {size}, but the tokenizer has {self.vocab_size} tokens, {needed!r} among those beyond"
            )
        eos_ids = tuple(identity for identity in self.eos_ids if identity < size)
        return FileTokenizer(
            self._codec.within(size, beyond), eos_ids, self.pad_id if self.pad_id < size else eos_ids[0]
        )

    def _kept(self, ids: Sequence[int]) -> list[int]:
        """Without ends and pads, and without ids of the model's that no token has."""
        return [int(i) for i in ids if i < self.vocab_size and i not in self._dropped]


def sentencepiece(path: str, bos: bool = False, eos: str = "", model: Path | None = None) -> FileTokenizer:
    """A sentencepiece model file; pad is its EOS where it has no pad.

    Args:
      path: the file; what its folder says of special tokens and ends holds too.
      bos: prompts begin with the model's BOS.
      eos: the tokens that end a text, in place of what the files say.
      model: the folder of the policy, whose ends hold too.

    Raises Refusal when the file is missing, is not such a model, or has no EOS, or no BOS where one is asked for.
    """
    codec, processor = sentencepiece_codec(_existing(path, "a sentencepiece .model file"), bos)
    own = processor.eos_id()
    if own < 0 and not eos and not codec.texts.eos_texts:
        raise Refusal(f"{codec.file} has no EOS piece; train the model with an eos_id of 0 or more")
    eos_ids = codec.ends(eos, model, own if own >= 0 else None)
    named, own_pad = codec.named("pad_token"), processor.pad_id()
    return FileTokenizer(codec, eos_ids, named if named is not None else own_pad if own_pad >= 0 else eos_ids[0])


def sentencepiece_codec(file: Path, bos: bool = False) -> tuple[Codec, Any]:
    """A sentencepiece model with the tokens that its folder adds, and the library's processor."""
    library: Any = import_module("sentencepiece")
    try:
        processor = library.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise Refusal(f"{file} is not a sentencepiece model: {' '.join(str(error).split())}") from None
    if bos and processor.bos_id() < 0:
        raise Refusal(f"tokenizer.bos is true, but {file} has no BOS piece")
    texts = FolderTexts(file.parent)
    known = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    added = _added_pieces(file, texts, known)
    pieces = Pieces(processor, added)
    replaced = set(added.values())
    vocabulary = {text: i for text, i in known.items() if i not in replaced} | added
    codec = Codec(
        file=file,
        texts=texts,
        size=1 + max(vocabulary.values()),
        encode=pieces.encode,
        decode=pieces.decode,
        encode_many=lambda many: [pieces.encode(text) for text in many],
        id_of=vocabulary.get,
        vocabulary=lambda: vocabulary,
        marks=pieces.marks,
        prefix_ids=(processor.bos_id(),) if bos else (),
    )
    return codec, processor


def _added_pieces(file: Path, texts: FolderTexts, known: Mapping[str, int]) -> dict[str, int]:
    """Special tokens of a folder's files by their texts: pieces of the model, and those added or put in a piece's place."""
    found: dict[str, int] = {}
    free = len(known)
    for token in texts.added_tokens:
        identity = found.get(token.text, known.get(token.text)) if token.id is None else token.id
        if identity is None and token.text in texts.eos_texts:
            continue  # no model has learned to end with it
        identity = free if identity is None else identity
        if identity > free:
            raise Refusal(
                f"{token.source} has the id {identity}, but {file} and the tokens before it end at {free - 1}"
            )
        found[token.text] = identity
        free = max(free, identity + 1)
    return found


def hugging_face(path: str, eos: str = "", model: Path | None = None) -> FileTokenizer:
    """A `tokenizer.json` of the tokenizers library, or the folder that holds it, with the tokens that the folder adds.

    Args:
      path: the file or its folder.
      eos: the tokens that end a text, in place of what the files say.
      model: the folder of the policy, whose ends hold too; None: the tokenizer's own.

    The EOS is found as `hub/ends.py` says. Pad is the folder's `pad_token`, else one of customary names, else the EOS.
    Raises Refusal when the file is missing, is not a tokenizer, or tells no EOS.
    """
    place = Path(path)
    file = _existing(str(place / "tokenizer.json") if place.is_dir() else path, "a tokenizer.json file or its folder")
    codec = hugging_face_codec(file)
    eos_ids = codec.ends(eos, model)
    pads = (codec.named("pad_token"), *(codec.marks.get(text) for text in PAD_TEXTS))
    return FileTokenizer(codec, eos_ids, next((pad for pad in pads if pad is not None), eos_ids[0]))


def hugging_face_codec(file: Path) -> Codec:
    """A tokenizer.json with the tokens that its folder adds."""
    module: Any = import_module("tokenizers")
    try:
        library: Any = module.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception
        reason = " ".join(str(error).split())
        raise Refusal(f"{file} is not a tokenizer.json of the tokenizers library: {reason}") from None
    library.no_padding()
    library.no_truncation()
    texts = FolderTexts(file.parent)
    _add_tokens(library, module.AddedToken, file, texts)
    marks = {token.content: identity for identity, token in library.get_added_tokens_decoder().items()}
    return Codec(
        file=file,
        texts=texts,
        size=library.get_vocab_size(with_added_tokens=True),
        encode=lambda text: library.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: library.decode(ids, skip_special_tokens=False),
        encode_many=lambda many: [
            found.ids for found in library.encode_batch_fast(list(many), add_special_tokens=False)
        ],
        id_of=library.token_to_id,
        vocabulary=lambda: library.get_vocab(with_added_tokens=True),
        marks=marks,
        prefix_ids=_prefix(library),
    )


def _add_tokens(library: Any, make: Any, file: Path, texts: FolderTexts) -> None:
    """Adds the tokens of the files beside a tokenizer.json, as transformers does.

    An EOS that is no token is not added: no model has learned to end with it. Raises Refusal for a token that would not get
    the id that its file gives it.
    """
    with_flags = [token for token in texts.added_tokens if token.flags is not None]
    library.add_tokens([make(token.text, **(token.flags or {})) for token in with_flags])
    added = set(library.get_added_tokens_decoder())
    special = [token.text for token in texts.added_tokens if token.flags is None]
    special = [text for text in special if library.token_to_id(text) is not None or text not in texts.eos_texts]
    special = [text for text in dict.fromkeys(special) if library.token_to_id(text) not in added]
    library.add_special_tokens([make(text, normalized=False, special=True) for text in special])
    for token in with_flags:
        got = library.token_to_id(token.text)
        if got != token.id:
            raise Refusal(f"{token.source} is the token {token.text!r}, which has the id {got} beside {file}")


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
        raise MissingInput(f"tokenizer.path {path!r} is not there; it should name {wanted}")
    return Path(path)
