"""The files that an export takes over from the folders that a model and its tokenizer came from.

Everything but weights and the state of a trainer is taken over: a list of what to leave out cannot
forget a new kind of tokenizer file. Of a folder that holds no model, as one with a tokenizer among
other files, the files of a tokenizer are taken.
"""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_jax.extras import needed
from rlhf_jax.pretrained.weight_files import read_json
from rlhf_jax.refusal import Refusal
from rlhf_jax.text import json_texts
from rlhf_jax.text.folder_texts import CONFIG, GENERATION, TOKENIZER_CONFIG
from rlhf_jax.text.vocabularies import MODELS, VOCABULARIES
from rlhf_jax.text.vocabularies import TOKENIZER as TOKENIZER_JSON

SENTENCEPIECE = "tokenizer.model"
TEMPLATES = (
    "additional_chat_templates"  # the one folder that transformers writes beside a tokenizer
)
MAX_BYTES = 64 << 20  # of a file that is no tokenizer's: a larger one holds data

# Weights of any format, their indices, adapters, what trainers leave, data, the card of the other
# model, and what is hidden.
LEFT_OUT = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|ggml|onnx|onnx_data|tflite|ot|npz|npy|pkl|pickle|distcp|engine|llamafile)"
    r"|.*\.index\.json|adapter_.*|(optimizer|scheduler|rng_state|scaler|trainer_state|training_args|all_results|train_results|"
    r"eval_results|zero_to_fp32|global_step|latest|events\.out).*"
    r"|.*\.(jsonl|parquet|arrow|csv|tsv|log|zip|tar|gz|zst|lock|metadata)|README.*|\..*",
    re.IGNORECASE,
)
OF_TOKENIZER = re.compile(
    r"tokenizer.*|.*tokenizer\.json|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt|.*\.(model|tiktoken|bpe|spm)"
    r"|.*chat_template.*|.*\.jinja|tokenization_.*\.py",
    re.IGNORECASE,
)
VOCABULARY = re.compile(
    r"vocab.*|merges\.txt", re.IGNORECASE
)  # of a tokenizer that is called tokenizer.json
OF_MODEL = re.compile(rf"{re.escape(GENERATION)}|(licen[sc]e|notice|use_policy).*", re.IGNORECASE)


def files(tokenizer_from: Path | None, model_from: Path | None) -> dict[str, Path]:
    """The files to take over, by the name that each has in the export.

    Args:
      tokenizer_from: the tokenizer's file, under whatever name, or its folder; None for a tokenizer
        that has no file.
      model_from: the checkpoint folder that the model came from; None for one that was trained from
        scratch.

    Raises Refusal where a folder holds several tokenizers and none under the name that transformers
    looks for.
    """
    carried: dict[str, Path] = {}
    if model_from is not None:
        carried |= {
            name: file
            for name, file in _carried(model_from).items()
            if not _is_tokenizer_file(name)
        }
    if tokenizer_from is None:
        return carried
    folder = tokenizer_from if tokenizer_from.is_dir() else tokenizer_from.parent
    named = None if tokenizer_from.is_dir() else tokenizer_from
    available = _carried(folder)
    if model_from is not None and folder.resolve() != model_from.resolve():
        available = {name: file for name, file in available.items() if _is_tokenizer_file(name)}
    return carried | _under_its_name(folder, named, available)


def _is_tokenizer_file(name: str) -> bool:
    return OF_TOKENIZER.fullmatch(name.split("/")[0]) is not None or name.startswith(TEMPLATES)


def _carried(folder: Path) -> dict[str, Path]:
    """The files that are taken over from a folder."""
    whole = (folder / CONFIG).exists()
    carried = {}
    for file in sorted(folder.iterdir()):
        name = file.name
        if name == CONFIG or not file.is_file() or LEFT_OUT.fullmatch(name):
            continue
        tokenizer_s = OF_TOKENIZER.fullmatch(name)
        if tokenizer_s or (
            (whole or OF_MODEL.fullmatch(name)) and file.stat().st_size <= MAX_BYTES
        ):
            carried[name] = file
    templates = (
        sorted((folder / TEMPLATES).glob("*.jinja")) if (folder / TEMPLATES).is_dir() else []
    )
    return carried | {f"{TEMPLATES}/{file.name}": file for file in templates}


def _under_its_name(
    folder: Path, named: Path | None, available: Mapping[str, Path]
) -> dict[str, Path]:
    """The tokenizer's file under the name that transformers looks for, and no other tokenizer
    beside it.
    """
    candidates = [named] if named is not None else _unnamed(folder, available)
    if not candidates:
        return dict(available)
    if len(candidates) > 1:
        raise Refusal(
            f"{folder} holds several tokenizers, {', '.join(file.name for file in candidates)}, "
            "and none called "
            f"{TOKENIZER_JSON} or {SENTENCEPIECE}: name one of them so"
        )
    name = SENTENCEPIECE if candidates[0].suffix == ".model" else TOKENIZER_JSON
    if available.get(name) == candidates[0]:  # already so called: what is beside it belongs to it
        return dict(available)
    others = {TOKENIZER_JSON, SENTENCEPIECE, *(file.name for file in _tokenizers(folder))}
    remaining = {
        other: file
        for other, file in available.items()
        if other not in others and not VOCABULARY.fullmatch(other)
    }
    return remaining | {name: candidates[0]}


def _unnamed(folder: Path, available: Mapping[str, Path]) -> Sequence[Path]:
    """The tokenizers of a folder that has none under the usual names."""
    if {TOKENIZER_JSON, *MODELS, *VOCABULARIES} & available.keys():
        return ()
    return _tokenizers(folder)


def _tokenizers(folder: Path) -> list[Path]:
    """Files of tokenizers in a folder, by their suffix or by what they hold."""
    return sorted(
        file for file in folder.iterdir() if file.suffix == ".model" or _is_tokenizer_json(file)
    )


def _is_tokenizer_json(file: Path) -> bool:
    if file.suffix != ".json" or not file.is_file():
        return False
    try:
        content = json_texts.read_object(file)
    except Refusal:
        return False
    return isinstance(content.get("model"), dict) and "pre_tokenizer" in content


def copy(carried: Mapping[str, Path], directory: Path) -> None:
    """Copies files under their new names; links are followed.

    Args:
      carried: files by new name, which may have one folder in it.
      directory: exists.
    """
    for name, file in carried.items():
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, directory / name)


def description(
    carried: Mapping[str, Path], token_ids: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """A tokenizer_config.json for a tokenizer that has none, or None.

    Without it transformers takes the class that the model's family has, which may read the same
    file in another way.
    """
    if TOKENIZER_CONFIG in carried or not {TOKENIZER_JSON, SENTENCEPIECE} & carried.keys():
        return None
    written: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if TOKENIZER_JSON in carried:
        with needed("hub", str(carried[TOKENIZER_JSON])):
            tokenizers = import_module("tokenizers")
        library = tokenizers.Tokenizer.from_file(str(carried[TOKENIZER_JSON]))
        for name in ("eos", "pad"):
            ids = listed(token_ids.get(f"{name}_token_id"))
            if ids and library.id_to_token(ids[0]) is not None:
                written[f"{name}_token"] = library.id_to_token(ids[0])
    return written


def listed(value: int | Sequence[int] | None) -> list[int]:
    """Ids of a key that holds one, several or none."""
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def generation(carried: Mapping[str, Path], ids: Iterable[int]) -> Mapping[str, Any] | None:
    """The generation_config.json, ending a text at every one of `ids` and where it ended before;
    None where there is none.

    One that was made from a config.json may hold the default of a class, an id that is no end in
    this vocabulary. So it is taken to be where it shares no end with `ids`.
    """
    if GENERATION not in carried:
        return None
    read, given = read_json(carried[GENERATION]), list(ids)
    before = read.get("eos_token_id")
    if read.get("_from_model_config") and not set(given) & set(listed(before)):
        before = None
    return {**read, "eos_token_id": merged(given, before)}


def merged(ids: Iterable[int], before: int | Sequence[int] | None) -> int | list[int] | None:
    """One id, or the list of all of them: those of `before` first, if they hold one of `ids`, so
    that their order stays.
    """
    given, earlier = list(dict.fromkeys(ids)), listed(before)
    one_of_them = any(identity in earlier for identity in given)
    every = list(dict.fromkeys([*earlier, *given] if one_of_them else [*given, *earlier]))
    return every[0] if len(every) == 1 else every or None
