"""Comparisons: pairs of samples of the SFT policy, ordered by the gold judge; or a user's own
pairs, as they are.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.ops.once import bound
from rlhf_jax.records.jsonl import replace
from rlhf_jax.records.progress import progress
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.run_directory import lock
from rlhf_jax.runtime import activity
from rlhf_jax.stages import sft
from rlhf_jax.stages.api import PromptStream, Workspace
from rlhf_jax.stages.settings.stages import ComparisonsConfig as Config
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.tasks.api import Split
from rlhf_jax.tasks.common import reading
from rlhf_jax.text import encoding
from rlhf_jax.text.chat import Rendered
from rlhf_jax.types import Algorithm, Params, Prompts, Samples

STAGE = "comparisons"
SPLITS: tuple[Split, ...] = ("train", "heldout")
RENDERED = "rendered"  # of a line: its prompt is a conversation in a chat template
Comparison = dict[str, Any]


def path(workspace: Workspace, split: Split) -> Path:
    return workspace.directory / STAGE / f"{split}.jsonl"


def read(workspace: Workspace, split: Split) -> list[Comparison]:
    """The comparisons of a split.

    Args:
      workspace: of the run.
      split: "train" or "heldout".

    Raises MissingInput when the stage has not run.
    """
    file = path(workspace, split)
    if not file.exists():
        raise MissingInput(f"{file} is missing: run the stage {STAGE!r} first")
    return [_told(json.loads(line)) for line in file.read_text().splitlines()]


def _told(line: Comparison) -> Comparison:
    """The comparison of a line; a prompt in a chat template stays one, as a BOS is not put before
    it.
    """
    return line | {"prompt": Rendered(line["prompt"])} if line.pop(RENDERED, False) else line


def _line(comparison: Comparison) -> str:
    rendered = {RENDERED: True} if isinstance(comparison["prompt"], Rendered) else {}
    return json.dumps(comparison | rendered) + "\n"


def write(file: Path, comparisons: Iterable[Comparison]) -> None:
    """All lines or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, "".join(map(_line, comparisons)).encode())


def encode(
    workspace: Workspace, comparisons: Sequence[Comparison]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of comparisons, chosen then rejected: prompt tokens and mask `[R, Q]`, completion tokens
    and mask `[R, C]`, with R twice the number of comparisons.

    Args:
      workspace: whose tokenizer and lengths they are for.
      comparisons: as `read` gives them.
    """
    prompts, ids = [], []
    for line in comparisons:
        prompts += [line["prompt"], line["prompt"]]
        ids += [line["chosen_tokens"], line["rejected_tokens"]]
    lengths, tokenizer = workspace.lengths, workspace.tokenizer
    return (
        *encoding.encode_prompts(prompts, tokenizer, lengths.max_prompt_tokens),
        *encoding.pad_completions(ids, tokenizer.pad_id, lengths.max_completion_tokens),
    )


def pairs_of_update(seed: int, num_pairs: int, batch: int, update: int) -> np.ndarray:
    """The numbers of the pairs of an update, `[batch]`.

    Each epoch has an order of its own, and leaves out the pairs that do not fill a last update.

    Args:
      seed: of the run.
      num_pairs: that there are, at least `batch`.
      batch: pairs per update.
      update: its number, from 0.
    """
    epoch, index_in_epoch = divmod(update, num_pairs // batch)
    order = np.random.default_rng([seed, epoch]).permutation(num_pairs)
    return order[index_in_epoch * batch :][:batch]


def rows_of_pairs(pairs_U: np.ndarray) -> np.ndarray:
    """The numbers of the rows of pairs, chosen then rejected, `[2U]`."""
    return np.stack([2 * pairs_U, 2 * pairs_U + 1], axis=1).reshape(-1)


def own_pairs(workspace: Workspace, pairs: Iterable[tuple[str, str, str]]) -> list[Comparison]:
    """A user's (prompt, chosen, rejected), tokenized, each with an EOS."""
    tokenizer, found = workspace.tokenizer, []
    for prompt, chosen, rejected in pairs:
        before = encoding.last_id(prompt, tokenizer)
        tokens = {
            "chosen_tokens": encoding.ended_ids(chosen, tokenizer, before),
            "rejected_tokens": encoding.ended_ids(rejected, tokenizer, before),
        }
        found.append({"prompt": prompt, "chosen": chosen, "rejected": rejected} | tokens)
    return found


def relabelled(workspace: Workspace, pairs: list[Comparison]) -> tuple[list[Comparison], float]:
    """Given pairs in the order of the gold reward model, and the share of them that it ordered as
    given.

    A pair that gold scores alike keeps its order (async RLHF, arXiv 2410.18252, its
    relabel_with_rm.py).
    """
    prompts = [pair["prompt"] for pair in pairs]
    ended = [True] * len(pairs)
    scores = {
        side: workspace.gold(prompts, [pair[side] for pair in pairs], ended)
        for side in ("chosen", "rejected")
    }
    found = []
    for row, pair in enumerate(pairs):
        chosen, rejected = float(scores["chosen"][row]), float(scores["rejected"][row])
        first, second = ("rejected", "chosen") if rejected > chosen else ("chosen", "rejected")
        found.append(
            {"prompt": pair["prompt"], "chosen": pair[first], "rejected": pair[second]}
            | {"chosen_gold": max(chosen, rejected), "rejected_gold": min(chosen, rejected)}
            | {
                "chosen_tokens": pair[f"{first}_tokens"],
                "rejected_tokens": pair[f"{second}_tokens"],
            }
        )
    return found, float(np.mean(scores["chosen"] >= scores["rejected"])) if pairs else float("nan")


def write_given(workspace: Workspace, config: Config) -> None:
    """A user's own comparisons, relabelled where a gold reward model is to say who won."""
    began, agreement = time.perf_counter(), {}
    for split in SPLITS:
        pairs = own_pairs(workspace, reading.comparisons(workspace.task, split))
        if config.by_gold and workspace.pretrained.gold:
            pairs, agreement[f"{split}_agreement"] = relabelled(workspace, pairs)
        write(path(workspace, split), pairs)
    if agreement:
        workspace.metrics.write("evaluate", 0, agreement, time.perf_counter() - began, of=STAGE)


def judged_pairs(workspace: Workspace, stream: PromptStream, samples: Samples) -> list[Comparison]:
    """Pairs of a group of two, in the order of gold; ties are left out."""
    host = distributed.fetch(samples)
    prompts, texts = stream.texts_of(host), workspace.completions(host)
    ids = encoding.completion_ids(host.tokens_BC, host.mask_BC)
    gold = workspace.gold(prompts, texts, host.finished_B.tolist()).tolist()
    pairs = []
    for first in range(0, len(texts), 2):
        chosen, rejected = (
            (first, first + 1) if gold[first] > gold[first + 1] else (first + 1, first)
        )
        if gold[chosen] != gold[rejected]:
            pairs.append(
                {"prompt": prompts[first], "chosen": texts[chosen], "rejected": texts[rejected]}
                | {"chosen_gold": gold[chosen], "rejected_gold": gold[rejected]}
                | {"chosen_tokens": ids[chosen], "rejected_tokens": ids[rejected]}
            )
    return pairs


def sampler(
    workspace: Workspace, config: sampling.Config, purpose: str
) -> Callable[[Params, Prompts], Samples]:
    """`(params, prompts) -> Samples`, compiled, with the keys of `purpose`; each host draws its
    share by itself.

    The key is an argument of the program, so purposes with one config share one program.

    Args:
      workspace: of the run.
      config: of sampling.
      purpose: names the random key, see `Workspace.key`.
    """
    local_mesh = per_host.local_mesh(workspace.mesh)
    if config not in workspace.samplers:
        draw = bound(
            sampling.sample,
            model=workspace.model,
            config=config,
            eos_id=workspace.tokenizer.eos_ids,
            pad_id=workspace.tokenizer.pad_id,
        )
        workspace.samplers[config] = jax.jit(sharding.sampling_rows(draw, local_mesh))
    compiled, key = workspace.samplers[config], workspace.key(purpose)

    def run_sampler(params: Params, prompts: Prompts) -> Samples:
        share = per_host.local_rows(prompts, workspace.mesh)
        share = jax.device_put(share, sharding.row_shardings(share, local_mesh))
        samples = compiled(per_host.on_each_host(params), share, key, np.int32(0))
        return per_host.to_global(samples, sharding.row_shardings(samples, workspace.mesh))

    return run_sampler


def run(workspace: Workspace, config: Config, sft_params: Params) -> None:
    """Writes `comparisons/train.jsonl` and `heldout.jsonl`; does nothing where both are there.

    Args:
      workspace: of the run.
      config: of the stage.
      sft_params: of the policy whose samples are compared, held (`Workspace.held`) or not.
    """
    if distributed.agree(all(path(workspace, split).exists() for split in SPLITS)):
        return
    with lock.hold(workspace.directory):
        workspace.record(STAGE)
        _make(workspace, config, sft_params)


def _make(workspace: Workspace, config: Config, sft_params: Params) -> None:
    """The comparisons that the task gives, or sampled ones."""
    began = time.perf_counter()
    if any(reading.comparisons(workspace.task, split) for split in SPLITS):
        write_given(workspace, config)
        distributed.barrier()
        return
    if not workspace.has_gold:
        raise Refusal(
            "the task gives neither comparisons nor a gold judge to make them: set its "
            "comparisons, or pretrained.gold"
        )
    drawing = sampling.Config(workspace.lengths.max_completion_tokens, 2, config.temperature)
    draw = sampler(workspace, drawing, STAGE)
    with progress("Comparisons", total=config.num_train + config.num_heldout) as bar:
        for split, count in zip(SPLITS, (config.num_train, config.num_heldout), strict=True):
            stream = workspace.stream(split, STAGE)
            pairs: list[Comparison] = []
            size = config.prompts_per_batch
            # The devices draw the next batch while the host judges this one.
            starts = range(0, count, size)
            batches = (draw(sft_params, stream.prompts(start, size)) for start in starts)
            for start, (samples, _) in zip(starts, pairwise(chain(batches, [None])), strict=True):
                assert samples is not None
                pairs += judged_pairs(workspace, stream, samples)[: count - start]
                bar.advance(min(size, count - start))
            write(path(workspace, split), pairs)
    distributed.barrier()
    workspace.metrics.write_timing(STAGE, activity.timings_since(began))


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=comparisons`: this stage alone, with the SFT policy of the run's directory."""
    del algorithm
    run(workspace, stages.comparisons, workspace.held(sft.load(workspace)))
