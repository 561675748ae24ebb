"""Tokenizers of files: sentencepiece models and Hugging Face's tokenizer.json, with their own ids."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rlhf_jax.extras import needed
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.text.codec import Codec, FileTokenizer
from rlhf_jax.text.folder_texts import FolderTexts
from rlhf_jax.text.pieces import Pieces

PAD_TEXTS = ("<|padding|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")


class Encoding(Protocol):
    """A text that the tokenizers library has encoded."""

    @property
    def ids(self) -> list[int]: ...


class Library(Protocol):
    """The methods of `tokenizers.Tokenizer` that are called here."""

    def no_padding(self) -> None: ...

    def no_truncation(self) -> None: ...

    def add_tokens(self, tokens: Sequence[object], /) -> int: ...

    def add_special_tokens(self, tokens: Sequence[object], /) -> int: ...

    def get_added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def get_vocab(self, with_added_tokens: bool) -> dict[str, int]: ...

    def get_vocab_size(self, with_added_tokens: bool) -> int: ...

    def token_to_id(self, token: str, /) -> int | None: ...

    def encode(self, text: str, /, *, add_special_tokens: bool) -> Encoding: ...

    def encode_batch_fast(
        self, texts: Sequence[str], /, *, add_special_tokens: bool
    ) -> Sequence[Encoding]: ...

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool) -> str: ...


def sentencepiece(
    path: str, bos: bool = False, eos: str = "", model: Path | None = None
) -> FileTokenizer:
    """Makes the tokenizer of a sentencepiece model. Its pad is the EOS if it has none.

    Args:
      path: the file; the special tokens and ends of its folder count too.
      bos: prompts begin with the model's BOS.
      eos: the tokens that end a text, in place of those of the files.
      model: the folder of the policy, whose ends count too; None: the tokenizer's own.

    Raises:
      Refusal: if the file is missing, is no such model, has no EOS, or lacks the BOS that is asked
        for.
    """
    codec, processor = sentencepiece_codec(_existing(path, "a sentencepiece .model file"), bos)
    own_eos = processor.eos_id()
    if own_eos < 0 and not eos and not codec.texts.eos_texts:
        raise Refusal(f"{codec.file} has no EOS piece; train the model with an eos_id of 0 or more")
    eos_ids = codec.ends(eos, model, own_eos if own_eos >= 0 else None)
    named, own_pad = codec.named("pad_token"), processor.pad_id()
    return FileTokenizer(
        codec, eos_ids, named if named is not None else own_pad if own_pad >= 0 else eos_ids[0]
    )


def sentencepiece_codec(file: Path, bos: bool = False) -> tuple[Codec, Any]:
    """Reads a sentencepiece model with the tokens that its folder adds.

    Args:
      file: the model.
      bos: prompts begin with the model's BOS.

    Returns:
      The codec, and the library's processor.

    Raises:
      Refusal: for a file that is no such model, a BOS that it lacks, and added tokens whose ids
        leave a gap.
    """
    library = import_module("sentencepiece")
    try:
        processor = library.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise Refusal(
            f"{file} is not a sentencepiece model: {' '.join(str(error).split())}"
        ) from None
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
        special=frozenset(pieces.marks.values()) - _plain(texts, pieces.marks),
        prefix_ids=(processor.bos_id(),) if bos else (),
    )
    return codec, processor


def _plain(texts: FolderTexts, marks: Mapping[str, int]) -> frozenset[int]:
    """Ids of added tokens that are ordinary text."""
    plain = (
        token
        for token in texts.added_tokens
        if not (token.flags or {"special": True}).get("special", False)
    )
    return frozenset(marks[token.text] for token in plain if token.text in marks)


def _added_pieces(file: Path, texts: FolderTexts, known: Mapping[str, int]) -> dict[str, int]:
    """Ids of the tokens that a folder adds, by their texts: new ones, and pieces of the model that
    become special or are replaced.
    """
    added: dict[str, int] = {}
    free = len(known)
    for token in texts.added_tokens:
        identity = added.get(token.text, known.get(token.text)) if token.id is None else token.id
        if identity is None and token.text in texts.eos_texts:
            continue  # no model has learned to end a text with it
        identity = free if identity is None else identity
        if identity > free:
            raise Refusal(
                f"{token.source} has the id {identity}, but {file} and the tokens before it end at "
                f"{free - 1}"
            )
        added[token.text] = identity
        free = max(free, identity + 1)
    return added


def hugging_face(path: str, eos: str = "", model: Path | None = None) -> FileTokenizer:
    """Makes the tokenizer of a `tokenizer.json`, with the tokens that its folder adds.

    The EOS is found by `ends.find`. Pad is the folder's `pad_token`, else a token of a usual name,
    else the EOS.

    Args:
      path: the file or its folder.
      eos: the tokens that end a text, in place of those of the files.
      model: the folder of the policy, whose ends count too; None: the tokenizer's own.

    Raises:
      Refusal: if the file is missing, is no tokenizer, or has no EOS.
    """
    given = Path(path)
    file = _existing(
        str(given / "tokenizer.json") if given.is_dir() else path,
        "a tokenizer.json file or its folder",
    )
    codec = hugging_face_codec(file)
    eos_ids = codec.ends(eos, model)
    pads = (codec.named("pad_token"), *(codec.marks.get(text) for text in PAD_TEXTS))
    return FileTokenizer(codec, eos_ids, next((pad for pad in pads if pad is not None), eos_ids[0]))


def hugging_face_codec(file: Path) -> Codec:
    """Reads a tokenizer.json with the tokens that its folder adds.

    Raises Refusal for any other file.
    """
    with needed("hub", str(file)):
        module = import_module("tokenizers")
    try:
        library: Library = module.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception
        reason = " ".join(str(error).split())
        raise Refusal(
            f"{file} is not a tokenizer.json of the tokenizers library: {reason}"
        ) from None
    library.no_padding()
    library.no_truncation()
    texts = FolderTexts(file.parent)
    _add_tokens(library, module.AddedToken, file, texts)
    added = library.get_added_tokens_decoder()
    return Codec(
        file=file,
        texts=texts,
        size=library.get_vocab_size(with_added_tokens=True),
        encode=lambda text: library.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: library.decode(ids, skip_special_tokens=False),
        encode_many=lambda many: [
            encoding.ids
            for encoding in library.encode_batch_fast(list(many), add_special_tokens=False)
        ],
        id_of=library.token_to_id,
        vocabulary=lambda: library.get_vocab(with_added_tokens=True),
        marks={token.content: identity for identity, token in added.items()},
        special=frozenset(identity for identity, token in added.items() if token.special),
        prefix_ids=_prefix(library),
    )


def _add_tokens(
    library: Library, make: Callable[..., object], file: Path, texts: FolderTexts
) -> None:
    """Adds the tokens of the files beside a tokenizer.json, as transformers does.

    An EOS that is no token yet is not added: no model has learned to end a text with it. Raises
    Refusal for a token that would not get the id that its file gives it.
    """
    with_flags = [token for token in texts.added_tokens if token.flags is not None]
    library.add_tokens([make(token.text, **(token.flags or {})) for token in with_flags])
    added = set(library.get_added_tokens_decoder())
    special = [token.text for token in texts.added_tokens if token.flags is None]
    special = [
        text
        for text in special
        if library.token_to_id(text) is not None or text not in texts.eos_texts
    ]
    special = [text for text in dict.fromkeys(special) if library.token_to_id(text) not in added]
    library.add_special_tokens([make(text, normalized=False, special=True) for text in special])
    for token in with_flags:
        got = library.token_to_id(token.text)
        if got != token.id:
            raise Refusal(
                f"{token.source} is the token {token.text!r}, which has the id {got} beside {file}"
            )


def _prefix(library: Library) -> tuple[int, ...]:
    """Ids that the file's post-processor puts before a text. Those after the text (an EOS) are
    ignored: the pipeline adds the EOS.
    """
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
