"""Writes `docs/scale/compiled.md`: what libtpu makes of a recipe's calls, before and after the output
head and sampling gathered their params once.

    python -m experiments.bench.compiled

The figures are those of the command `compile`, in `results/compile_tldr_410m_*.json`: the recipe at
one layer and at two. The figures at 24 layers are extrapolated from these two.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from experiments.studies.markdown import table

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "scale" / "compiled.md"
NUM_LAYERS = 24
DEVICES = 8
CALLS = ("train_policy", "generate", "reference")
BEFORE = {1: "compile_tldr_410m_1_layer", 2: "compile_tldr_410m_2_layers"}
AFTER = {1: "compile_tldr_410m_1_layer_after", 2: "compile_tldr_410m_2_layers_after"}
WIDTH, VOCABULARY = 1024, 50304
"""Of Pythia 410m."""


@cache
def read(name: str) -> dict[str, Any]:
    """A file that the command wrote with `--output`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def figures(names: Mapping[int, str], call: str, key: str) -> dict[int, float]:
    """A figure of a call at one layer, at two, and extrapolated to all layers."""
    found = {}
    for layers, name in names.items():
        compiled = {each["call"]: each["compiled"] for each in read(name)["calls"]}
        if call in compiled:
            found[layers] = float(compiled[call][key])
    if len(found) == 2:
        found[NUM_LAYERS] = found[1] + (NUM_LAYERS - 1) * (found[2] - found[1])
    return found


def num_params(layers: int) -> int:
    """Params of Pythia 410m with so many layers: table, head, final norm and layers."""
    layer = 12 * WIDTH**2 + 13 * WIDTH
    return 2 * VOCABULARY * WIDTH + 2 * WIDTH + layers * layer


def least_link_bytes(layers: int) -> float:
    """Bytes that a device sends in an update of one micro-batch with one reduction: params gathered
    twice in bfloat16, gradients reduced and scattered once in float32.
    """
    return (DEVICES - 1) / DEVICES * (2 * 2 + 4) * num_params(layers)


def rows() -> list[list[str]]:
    """A row for each call and depth."""
    found = []
    for call in CALLS:
        links = [figures(names, call, "link_bytes") for names in (BEFORE, AFTER)]
        temporary = [figures(names, call, "temporary_bytes") for names in (BEFORE, AFTER)]
        for layers in (1, 2, NUM_LAYERS):
            budget = f"{least_link_bytes(layers) / 1e9:.2f}" if call == "train_policy" else "–"
            cells = [[_gigabytes(side, layers) for side in each] for each in (links, temporary)]
            how = "extrapolated" if layers == NUM_LAYERS else "compiled"
            found.append([call, str(layers), *cells[0], budget, *cells[1], how])
    return found


def _gigabytes(values: Mapping[int, float], layers: int) -> str:
    """A figure; "–" for one that is not there, or that two depths do not extrapolate to."""
    value = values.get(layers, -1.0)
    return f"{value / 1e9:.3g}" if value >= 0 else "–"


def fingerprints() -> str:
    """A line for each file: its command, and the fingerprint of each call's lowered program."""
    lines = []
    for name in (*BEFORE.values(), *AFTER.values()):
        file = read(name)
        calls = ", ".join(
            f"{each['call']} `{each['compiled']['fingerprint']}`" for each in file["calls"]
        )
        versions = " and ".join(f"{key} {value}" for key, value in file["versions"].items())
        lines.append(f"* `{name}.json`: `{file['command']}` with {versions}; {calls}.")
    return "\n".join(lines)


def page() -> str:
    """The page as Markdown."""
    head = ["call", "layers", "links, before", "links, now", "formula", "temporary, before",
            "temporary, now", "how"]  # fmt: skip
    return PREAMBLE + table(head, rows()) + NOTES + fingerprints() + "\n"


PREAMBLE = """# What the compiler says of a recipe

**How much does a device send to the others in an update, and in a round of sampling?**

The 410m recipe of TL;DR (Online DPO) on v5e:2x4, in one part (`--config.plan=`): 512 prompts × 2, 512 +
53 tokens, `fsdp=8`. GB of 10⁹ bytes a device. "Before" is commit 688ce17: there the chunks of the output
head were counted over all devices, each chunk gathered the head and reduced its gradient, and sampling
summed the activations of all prompts over `fsdp`.

"""

NOTES = """

"Formula" is `7/8 · (2 · 2P + 4P)`: P params gathered twice in bfloat16, and their gradients reduced and
scattered once in float32. Bytes of generation are upper bounds before, because decoding may end early.
Temporary bytes of an update do not fit a v5e at 24 layers in one part; `plan=fit` cuts it. The rows at 24
layers were not compiled, and nothing was measured on a TPU.

The table is written by `python -m experiments.bench.compiled` from the files of
[`rlhf-jax compile`](compile.md) in `experiments/bench/results/`:

"""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
