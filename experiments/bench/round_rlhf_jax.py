"""Our side of the round benchmark: the program and loop of a run, with a host reward on decoded
text.
"""

import sys
from dataclasses import replace

import jax
import numpy as np

from experiments.bench import measure, rounds
from rlhf_jax import sampling, scoring
from rlhf_jax.algorithms import online_dpo
from rlhf_jax.clock import Clock
from rlhf_jax.devices import mesh, sharding
from rlhf_jax.models import gpt_neox
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.program import Program, ProgramSpec, Reward
from rlhf_jax.types import Prompts, Samples, States
from rlhf_jax.updating import OptimizerConfig, make_optimizer

MANY_ROUNDS = 10_000


def program(shape: rounds.Shape) -> tuple[Program, States]:
    """The compiled calls and a fresh state."""
    config = gpt_neox.PRESETS[shape.preset]
    config = replace(config, vocab_size=config.vocab_size or shape.vocab_size)
    model, devices = gpt_neox.make(config), mesh.make_mesh(mesh.Config())
    words = np.asarray(rounds.words(config.vocab_size))

    def prompts(round_index: int) -> Prompts:
        tokens = rounds.prompt_tokens(shape, config.vocab_size, round_index)
        ordinals = round_index * shape.num_prompts + np.arange(shape.num_prompts, dtype=np.int32)
        return Prompts(tokens_PQ=tokens, mask_PQ=np.ones(tokens.shape, bool), ordinal_P=ordinals)  # type: ignore[arg-type]

    def judge(samples: Samples) -> np.ndarray:
        tokens, mask, finished = jax.device_get(
            (samples.tokens_BC, samples.mask_BC, samples.finished_B)
        )
        lengths = mask.sum(1) - finished
        texts = [" ".join(words[row[:length]]) for row, length in zip(tokens, lengths, strict=True)]
        return np.asarray(rounds.reward(texts), np.float32)

    spec = ProgramSpec(
        model=model,
        algorithm=online_dpo.online_dpo(online_dpo.Config(beta=rounds.BETA)),
        optimizer=make_optimizer(OptimizerConfig(learning_rate=rounds.LEARNING_RATE), MANY_ROUNDS),
        sampling=sampling.Config(max_completion_tokens=shape.new, samples_per_prompt=2),
        scoring=scoring.Config(replace_missing_eos=False),
        reward=Reward(host=judge),
        clock=Clock(MANY_ROUNDS, 1, 1, 0, ()),
        mesh=devices,
        prompts=prompts,
        key=jax.random.key(0),
        seed=0,
        eos_id=rounds.EOS,
        pad_id=rounds.PAD,
        num_micro_batches=shape.num_micro_batches,
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    layout = sharding.params_shardings(model, shapes, devices)
    program = Program(spec, jax.jit(model.init, out_shardings=layout)(jax.random.key(0)))
    return program, program.init(program.reference_params)


def main() -> None:
    round_program, state = program(rounds.SHAPES[sys.argv[1]])
    events = synchronous.run(round_program, state, 0, {})

    def one_round() -> None:
        for event in events:
            if isinstance(event, synchronous.Updated):
                metrics = event.metrics
            if isinstance(event, synchronous.RoundEnd):
                jax.block_until_ready((event.states, metrics))
                return

    rounds.serve(one_round)
    rounds.say({"peak_megabytes": measure.peak_resident_megabytes()})


if __name__ == "__main__":
    main()
