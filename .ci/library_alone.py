"""One update of GRPO on sums with the library alone: jax, flax, optax, chex and numpy are
installed, and nothing else.

The package is installed without its requirements. Prints the metrics of the update.
"""

import dataclasses
import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rlhf_jax
from rlhf_jax import sampling, scoring, updating
from rlhf_jax.algorithms.grpo import Config, grpo
from rlhf_jax.models import gpt_neox
from rlhf_jax.rewards import exact_match
from rlhf_jax.tasks import addition
from rlhf_jax.text import encoding, tokenizers
from rlhf_jax.types import Prompts

NUM_PROMPTS, SAMPLES_PER_PROMPT = 8, 4

for absent in ("ml_collections", "matplotlib", "tensorflow_datasets", "tokenizers"):
    assert importlib.util.find_spec(absent) is None, f"{absent} is installed"

task = addition.make(addition.Config())
tokenizer = tokenizers.characters(task.vocabulary)
model = gpt_neox.make(
    dataclasses.replace(gpt_neox.PRESETS["quickstart"], vocab_size=tokenizer.vocab_size)
)
algorithm = grpo(Config(kl_weight=0.0))
state = updating.init_state(jax.jit(model.init)(jax.random.key(0)), optimizer := optax.adamw(1e-3))
texts = [task.prompt("train", index) for index in range(NUM_PROMPTS)]
prompts = Prompts(
    *encoding.encode_prompts(texts, tokenizer, 8), np.arange(NUM_PROMPTS, dtype=np.int32)
)
sample = partial(
    sampling.sample,
    model=model,
    config=sampling.Config(4, SAMPLES_PER_PROMPT, 1.0),
    eos_id=tokenizer.eos_id,
    pad_id=tokenizer.pad_id,
)
samples = jax.jit(sample)(state.params, prompts, jax.random.key(1), jnp.int32(0))
rows = zip(np.asarray(samples.tokens_BC), np.asarray(samples.mask_BC), strict=True)
completions = [tokenizer.decode(tokens[mask].tolist()) for tokens, mask in rows]
reward = exact_match.make(task)
raw_B = reward(
    [text for text in texts for _ in range(SAMPLES_PER_PROMPT)],
    completions,
    samples.finished_B.tolist(),
)
scores = scoring.make_scores(jnp.asarray(raw_B), samples.finished_B, 0.0, 1.0, scoring.Config())
step = partial(
    updating.train_step,
    objective=updating.policy_objective(algorithm.losses["policy"], model),
    optimizer=optimizer,
    aggregation=algorithm.aggregation,
    unit_rows=algorithm.unit_rows(SAMPLES_PER_PROMPT),
)
state, metrics = jax.jit(step)(state, algorithm.credit(samples, scores))
assert int(state.step) == 1
print(
    "rlhf_jax",
    getattr(rlhf_jax, "__version__", ""),
    {name: metric.value() for name, metric in metrics.items()},
)
