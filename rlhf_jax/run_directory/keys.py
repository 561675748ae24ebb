"""The class of each key of a config: its effect on the numbers of a run, and the first stage that
it enters.

    FREE        changes no number of training: bitwise the same params
    EVALUATION  changes no number of training, but what an evaluation's figures mean
    ROUNDING    changes numbers by rounding only
    COMPUTED    the precision of a stage: may differ between stages, not within one
    EXTENDING   may grow in the same directory, where no schedule depends on it
    PLACE       names a file or a folder: its content is compared and not its path (see `digests.py`)
    NUMBERS     enters the numbers

A key of NUMBERS may change as long as no stage that it enters has a checkpoint.
`tests/run_directory/test_keys.py` demands a class for every key of every component in the package.
A key of a component outside of the package enters the numbers, as do the settings of a reward,
`reward_settings.<label>.<key>`.
"""

import enum


class Class(enum.Enum):
    """The effect of a change of a key on a run: see the module."""

    FREE = "free"
    EVALUATION = "evaluation"
    ROUNDING = "rounding"
    COMPUTED = "computed"
    EXTENDING = "extending"
    PLACE = "place"
    NUMBERS = "numbers"


STAGES = ("sft", "comparisons", "reward_model", "prompt_values", "rlhf", "dpo")
"""In the order in which they run. A run has RLHF or DPO."""

MADE_OF = {
    "sft": (),
    "comparisons": ("sft",),
    "reward_model": ("sft", "comparisons"),
    "prompt_values": ("sft", "comparisons", "reward_model"),
    "rlhf": ("sft", "comparisons", "reward_model", "prompt_values"),
    "dpo": ("sft", "comparisons"),
}
"""The stages whose results enter a stage's numbers."""

OPTIMIZER = (
    "learning_rate",
    "schedule",
    "warmup_updates",
    "beta1",
    "beta2",
    "epsilon",
    "weight_decay",
    "max_grad_norm",
    "decay_on",
)

_OF_CLASS: dict[Class, str] = {
    # The loop, deadlines, cadences and logs. A ledger that was off for some updates lacks their
    # rows.
    Class.FREE: """
        job directory compile_cache track task.cache_dir sft.min_whole_references
        sft.checkpoint_every reward_model.checkpoint_every dpo.checkpoint_every dpo.evaluate_every
        rlhf.loop rlhf.deadline_seconds rlhf.device_call_seconds
        rlhf.evaluate_every rlhf.evaluate_at rlhf.profile_updates rlhf.checkpoint_every rlhf.keep_checkpoints
        rlhf.log_samples rlhf.ledger rlhf.ledger_gold
        rlhf.signal.num_prompts rlhf.signal.min_pass_rate rlhf.signal.max_pass_rate rlhf.signal.max_flat_groups
        pretrained.policy_shape pretrained.reward_model_shape pretrained.gold_shape
    """,
    Class.EVALUATION: """
        evaluate.num_prompts evaluate.num_prompts_between evaluate.samples_per_prompt evaluate.references_per_prompt
        evaluate.compare_with
        evaluate.max_completion_tokens evaluate.part evaluate.num_parts best_of_n best_of_n_prompts
    """,
    # Sums in another order: other meshes, batches and micro-batches; layers that are computed
    # twice or in a scan; other kernels.
    Class.ROUNDING: """
        mesh.data mesh.fsdp mesh.tensor mesh.fsdp_hosts plan model.remat model.remat_policy model.attention model.scan_layers
        pretrained.gold_rows_per_batch evaluate.prompts_per_batch lengths.prompt_buckets
        sft.num_micro_batches reward_model.num_micro_batches rlhf.num_micro_batches rlhf.num_compactions
        dpo.num_micro_batches
        rlhf.sampler_slices rlhf.sampler_slice_devices rlhf.prompt_values.prompts_per_batch
    """,
    Class.COMPUTED: "model.dtype model.gradient_dtype model.network_gradient_dtype",
    Class.EXTENDING: "rlhf.total_prompts",
    Class.PLACE: """
        begin pretrained.base pretrained.sft pretrained.adapter pretrained.reward_model pretrained.gold
        tokenizer.path rlhf.replay_schedule_of
        task.prompts task.comparisons task.data_dir task.comparisons_dir
    """,
    Class.NUMBERS: """
        seed reward lengths.max_prompt_tokens lengths.max_completion_tokens
        tokenizer.kind tokenizer.eos tokenizer.bos
        task.name task.seed task.heldout_percent task.references_per_prompt task.max_words task.mood_spread task.calm task.limit
        task.padded task.calculator task.before task.after task.chat_template task.bos_token task.eos_token task.ties
        task.max_reply_tokens task.date task.rendered pretrained.gold_chat_template
        pretrained.gold_dtype
        task.digits task.spaced task.worked_examples task.least_terms task.most_terms task.max_term task.draws
        task.reversed_percent
        model.family model.vocab_size model.width model.ffn_width model.num_layers model.num_heads model.num_kv_heads
        model.head_width model.init_scale model.norm_eps model.parallel_residual model.tie_embeddings model.query_scalar
        model.logit_cap model.score_cap model.sliding_window model.first_window_layer model.rotary_fraction model.rope_theta
        model.rope_scaling model.rope_scaling_factor model.rope_low_frequency_factor model.rope_high_frequency_factor
        model.rope_original_max_positions model.rope_attention_factor model.rope_truncate model.rope_short_factors
        model.rope_long_factors model.rope_local_theta model.full_attention_interval model.no_rope_interval model.padding_id
        lora.rank lora.alpha lora.targets lora.learning_rate_factor lora.base_dtype
        algorithm.name algorithm.advantage algorithm.aggregation algorithm.beta algorithm.clip algorithm.clip_high
        algorithm.clip_low algorithm.gae_lambda algorithm.gamma algorithm.gain algorithm.high algorithm.low algorithm.kl_weight
        algorithm.ties algorithm.value_clip algorithm.weights algorithm.level algorithm.kl
        algorithm.base algorithm.baseline algorithm.baseline_temperature algorithm.temperature algorithm.length
        algorithm.correction.ratio_to algorithm.correction.correction algorithm.correction.level algorithm.correction.cap
        algorithm.correction.floor algorithm.correction.second_moment
        algorithm.surrogate.level algorithm.surrogate.flow algorithm.surrogate.gate algorithm.surrogate.low
        algorithm.surrogate.high algorithm.surrogate.far algorithm.surrogate.floor algorithm.surrogate.cap
        algorithm.surrogate.positive algorithm.surrogate.shape_positive algorithm.surrogate.shape_negative
        algorithm.filter.rows algorithm.filter.low algorithm.filter.high algorithm.filter.veto algorithm.filter.policy
        algorithm.filter.flat algorithm.filter.truncated
        algorithm.advantage.baseline algorithm.advantage.power algorithm.advantage.deviation algorithm.advantage.shift
        algorithm.advantage.whiten
        algorithm.penalty.kl algorithm.penalty.kl_weight algorithm.penalty.drift algorithm.penalty.entropy
        algorithm.advantage.noise algorithm.advantage.noise_seed algorithm.interpolation algorithm.interpolation_by
        algorithm.correction.normalise algorithm.failed_prompts algorithm.fail_score
        sft.num_updates sft.rows_per_update
        comparisons.num_train comparisons.num_heldout comparisons.prompts_per_batch comparisons.temperature comparisons.by_gold
        reward_model.num_updates reward_model.pairs_per_update reward_model.standardize reward_model.standardize_prompts
        dpo.loss_type dpo.beta dpo.label_smoothing dpo.num_updates dpo.pairs_per_update
        rlhf.prompts_per_update rlhf.num_minibatches rlhf.num_epochs rlhf.samples_per_prompt rlhf.lag rlhf.clock
        rlhf.sync_every rlhf.staged rlhf.buffer_rounds rlhf.buffer_draw rlhf.oversample
        rlhf.version_schedule rlhf.engine rlhf.weights rlhf.num_slots rlhf.segment_steps rlhf.tau rlhf.rebuild_every
        rlhf.publish_dtype rlhf.temperature rlhf.share_prompts rlhf.scoring.missing_eos_score rlhf.scoring.replace_missing_eos
        rlhf.scoring.overlong.buffer rlhf.scoring.overlong.factor
        rlhf.learning_rate_scale.rule rlhf.learning_rate_scale.base rlhf.learning_rate_scale.factors
        rlhf.gradient_cosine
        rlhf.prompt_values.num_samples
    """,
}
CLASSES: dict[str, Class] = {key: kind for kind, keys in _OF_CLASS.items() for key in keys.split()}
CLASSES |= {
    f"{node}.{name}": Class.NUMBERS
    for node in (
        "sft.optimizer",
        "reward_model.optimizer",
        "dpo.optimizer",
        "rlhf.optimizer",
        "rlhf.critic_optimizer",
    )
    for name in OPTIMIZER
}

_ENTERS: dict[str, tuple[str, ...]] = {
    "comparisons": ("comparisons",),
    "reward_model": ("reward_model",),
    "pretrained.reward_model": ("reward_model",),
    "pretrained.gold": ("comparisons", "prompt_values", "rlhf"),
    "pretrained.gold_chat_template": ("comparisons", "prompt_values", "rlhf"),
    "pretrained.gold_dtype": ("comparisons", "prompt_values", "rlhf"),
    "reward": ("prompt_values", "rlhf"),
    "reward_settings": ("prompt_values", "rlhf"),
    "algorithm": ("rlhf",),
    "plan": ("rlhf",),
    "rlhf": ("rlhf",),
    "rlhf.temperature": ("prompt_values", "rlhf"),
    "rlhf.scoring.missing_eos_score": ("prompt_values", "rlhf"),
    "rlhf.scoring.replace_missing_eos": ("prompt_values", "rlhf"),
    "rlhf.scoring.overlong.buffer": ("prompt_values", "rlhf"),
    "rlhf.scoring.overlong.factor": ("prompt_values", "rlhf"),
    "rlhf.prompt_values.num_samples": ("prompt_values", "rlhf"),
    "rlhf.prompt_values.prompts_per_batch": ("prompt_values", "rlhf"),
    "dpo": ("dpo",),
    "best_of_n": (),
    "best_of_n_prompts": (),
    "evaluate": (),
    "compile_cache": (),
    "track": (),
}


def class_of(key: str) -> Class:
    """The class of a key, its nodes joined by dots.

    A key that the table does not have enters the numbers.
    """
    return CLASSES.get(key, Class.NUMBERS)


def stages_of(key: str) -> tuple[str, ...]:
    """The stages whose own numbers a key enters; those after them are made of what they made."""
    return _ENTERS.get(key, _ENTERS.get(key.partition(".")[0], STAGES))


def enters(key: str, stage: str) -> bool:
    """True where a stage's numbers depend on a key, directly or through a stage before it.

    Args:
      key: of a config, joined by dots.
      stage: one of `STAGES`.
    """
    return not {stage, *MADE_OF[stage]}.isdisjoint(stages_of(key))
