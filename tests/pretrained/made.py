"""Small tokenizers of the kinds that published folders hold, made here: nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTES = 256


def byte_level(
    folder: Path, special=CHATML, bos: str = "", prefix_space: bool = False, merges=(), **files: Any
) -> Path:
    """A byte-level tokenizer.json: 256 bytes, then merges, then special tokens.

    `files` are written beside it as JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: place
        for place, token in enumerate([*alphabet, *("".join(merge) for merge in merges)])
    }
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    if bos:
        made.post_processor = processors.TemplateProcessing(
            f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
    made.save(str(folder / "tokenizer.json"))
    return write(folder, **files)


def write(folder: Path, **files: Any) -> Path:
    """Writes each value as the JSON file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def metaspace(folder: Path, kind: str, special=("<unk>", "<s>", "</s>", "<mark>")) -> Path:
    """A tokenizer.json whose spaces are letters of its own.

    `kind`: "prepend" puts one before every piece of text between special tokens, as Llama 2's does;
    "first" before the text alone; "always" before each that has none; "plain" nowhere, as Gemma's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)] + ["\n", "\u2581", "é"]
    merges = [
        ("\u2581", "i"),
        ("\u2581i", "t"),
        ("\u2581", "h"),
        ("\u2581", "a"),
        ("l", "l"),
        (".", "c"),
    ]
    words = [*special, *letters, *("".join(merge) for merge in merges)]
    made = Tokenizer(
        models.BPE(
            {word: place for place, word in enumerate(words)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    spaces = normalizers.Replace(" ", "\u2581")
    decoding = [decoders.Replace("\u2581", " "), decoders.Fuse()]
    if kind == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    elif kind == "plain":
        made.normalizer = spaces
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme=kind, split=False)
    made.decoder = decoders.Sequence(
        decoding + ([] if kind == "plain" else [decoders.Strip(" ", 1, 0)])
    )
    made.add_special_tokens(list(special))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return write(folder, tokenizer_config=config)


def pieces(folder: Path, name: str = "tokenizer", **options: Any) -> Path:
    """A sentencepiece model of about seventy pieces. Returns its file."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    lines = iter([f"[INST] hi number {n} [/INST] it is a hello." for n in range(300)])
    trained = {"model_type": "bpe", "vocab_size": 70, "hard_vocab_limit": False, "minloglevel": 2}
    trained |= {"normalization_rule_name": "identity", "model_prefix": str(folder / name)} | options
    if "input" not in trained:
        trained["sentence_iterator"] = lines
    sentencepiece.SentencePieceTrainer.train(**trained)
    return folder / f"{name}.model"
