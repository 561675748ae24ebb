"""The figures of a run: a readable title and one line of explanation for each name in
metrics.jsonl.
"""

from rlhf_jax.report import formats
from rlhf_jax.report.units import Units

TITLES = {
    "kl": "KL to the SFT policy, nats per completion",
    "kl_per_token": "KL to the SFT policy, nats per token",
    "kl_perplexity": "KL (perplexity), greedy",
    "entropy": "Entropy, nats per token",
    "win_rate": "Win-rate",
    "training_reward": "Reward in training",
    "win_rate_strict": "Win-rate, strict",
    "win_rate_greedy": "Win-rate, greedy",
    "win_rate_strict_greedy": "Win-rate, greedy and strict",
    "completion_length": "Completion length, tokens",
    "finished": "Completions that end (EOS)",
    "distinct_completions": "Distinct completions",
    "heldout_accuracy": "Held-out accuracy",
    "grad_norm": "Gradient norm",
    "update_norm": "Update norm",
    "age": "Age, updates",
    "age_mean": "Age of the tokens, updates",
    "age_p95": "Age that 95 % of tokens are below or at",
    "age_max": "Largest age of a token, updates",
    "age_mean_positive": "Age where the advantage is positive, updates",
    "age_mean_negative": "Age where the advantage is negative, updates",
    "age_mean_short": "Age of the tokens of short completions, updates",
    "age_mean_long": "Age of the tokens of long completions, updates",
    "mixed_share": "Rows of several versions",
    "slots_busy": "Slots that are busy",
    "live_group_share": "Live groups among the sampled ones",
    "kept_flat_share": "Flat groups among the kept ones",
    "prompts_sampled": "Prompts sampled so far",
    "overlong_penalty": "Penalty on long completions",
    "overlong_share": "Completions with a penalty on length",
}
PARTS = {
    "start": "to the first update (start and compile)",
    "compile": "compiling",
    "evaluate": "evaluations",
    "other": "training, sampling and the rest",
}
SPEEDS = {
    "step_seconds": "an update",
    "round_seconds": "a round",
    "generate_seconds": "sampling of a round",
    "sampler_wait_seconds": "the sampler waits",
    "publish_seconds": "publishing params",
    "trainer_wait_seconds": "the trainer waits",
    "train_seconds": "training on a round",
    "rows_per_second": "rows per second",
    "samples_per_second": "samples per second",
    "sampled_tokens_per_second": "sampled tokens per second of sampling",
    "trained_tokens_per_second": "trained tokens per second of training",
    "generate_mfu": "sampling: share of the devices' FLOP/s (MFU)",
    "train_mfu": "training: share of the devices' FLOP/s (MFU)",
    "generate_bandwidth_share": "sampling: share of the devices' memory bandwidth",
}
NOTES = {
    "gold_mean": "Mean score by the gold judge, of samples at temperature 1.",
    "gold_std": "Standard deviation of the gold score over samples.",
    "gold_mean_greedy": "Mean score by the gold judge, of greedy completions.",
    "win_rate": "Share of pairs of a sample and a reference in which the sample has more gold; a "
    "tie counts ½. evaluate.compare_with says what a reference is: the task's text, or a completion "
    "of the SFT policy.",
    "win_rate_strict": "The same with ties counted as lost.",
    "win_rate_greedy": "Win-rate of greedy completions; a tie counts ½.",
    "win_rate_strict_greedy": "Win-rate of greedy completions with ties counted as lost.",
    "reward_mean": "Mean of the reward model's scores, of samples at temperature 1.",
    "training_reward": "Mean reward of the samples that were trained on since the evaluation "
    "before.",
    "kl": "Divergence of the policy from the SFT policy, over the whole vocabulary, summed over a "
    "completion's tokens.",
    "kl_per_token": "The same per token.",
    "kl_perplexity": "exp of the SFT policy's negative log-likelihood per token, of greedy "
    "completions (as arXiv 2410.18252).",
    "entropy": "Entropy of the policy's next-token distribution. It falls as the policy becomes "
    "sure.",
    "completion_length": "Mean number of tokens of a completion, the EOS included.",
    "finished": "Share of completions that end before the length limit.",
    "distinct_completions": "Share of distinct texts in blocks of 64 samples. It falls as the "
    "policy repeats itself.",
    "heldout_accuracy": "Share of held-out comparisons that are ordered as they are labelled, by "
    "the reward model or by the policy's implicit reward.",
    "chosen_reward": "Implicit reward of a completion: β times the change of its log-probability "
    "from the SFT policy.",
    "rejected_reward": "The same of the rejected completion.",
    "reference_kl_k1": "Mean loss of log-probability from the SFT policy over a pair's completions. "
    "Of samples of the SFT policy it estimates that policy's KL to this one.",
    "raw_mean": "Mean of the reward model's raw scores over samples of the SFT policy.",
    "raw_std": "Their standard deviation.",
    "loss": "The algorithm's loss, as it is minimised. Losses of different algorithms do not "
    "compare.",
    "grad_norm": "Norm of the gradient before it is clipped.",
    "update_norm": "Norm of the step that the params took.",
    "learning_rate": "As the schedule has it.",
    "age": "Updates between the version that drew the samples and the one that trained on them; of "
    "a round of several versions, that of the oldest token.",
    "age_mean": "Mean age, in updates, of the tokens that the update trained on.",
    "age_p95": "95 % of the tokens that the update trained on were at most as old.",
    "age_max": "Age, in updates, of the oldest token that the update trained on.",
    "age_mean_positive": "Mean age of the tokens of completions with a positive advantage.",
    "age_mean_negative": "Mean age of the tokens of completions with a negative advantage.",
    "age_mean_short": "Mean age of the tokens of completions that are no longer than the median.",
    "age_mean_long": "Mean age of the tokens of completions that are no shorter than the median.",
    "mixed_share": "Share of rows that were being written when the weights changed: their tokens "
    "have more than one version.",
    "slots_busy": "Share of the slots that drew a token, over the decode steps that drew one of the "
    "round's.",
    "accuracy": "Share of pairs that are ordered as labelled.",
    "margin": "Mean difference of the two sides of a pair.",
    "reward": "Mean raw reward of a round's samples.",
    "score": "Mean reward after the rule for completions without an EOS: what the algorithm sees.",
    "tie_share": "Share of prompts whose samples all score the same.",
    "live_group_share": "Share of the sampled groups whose raw scores are not all equal.",
    "kept_flat_share": "Share of the kept groups whose raw scores are all equal: so many live ones were "
    "missing.",
    "prompts_sampled": "Prompts sampled up to this round, kept or not.",
    "overlong_penalty": "Mean penalty on long completions, which is a part of the score.",
    "overlong_share": "Share of completions with a penalty on their length.",
    "ratio": "Mean ratio of the trained policy's probability to that of the policy in the "
    "denominator.",
    "logprob_change": "Mean change of a token's log-probability since it was sampled.",
    "logprob_change_max": "The largest such change.",
    "sampler_trainer_logprob_diff_mean": "Mean difference of a token's log-probability between the "
    "sampler that drew it and the trainer at the start of the round, without sign.",
    "sampler_trainer_logprob_diff_max": "The largest such difference.",
    "staleness_ess_share_token": "Effective share of the round's tokens, weighted by the trainer's "
    "probability over the sampler's.",
    "staleness_ess_share_row": "The same of whole completions: it falls with their length, and may "
    "be small where that of tokens is near 1.",
    "row_ess_share": "Effective share of an update's completions, weighted by the trained policy's "
    "probability over the sampler's.",
    "learning_rate_scale": "Factor of the update by the effective share of its completions.",
    "gradient_cosine": "Cosine of the policy's gradient with that of the update before, before they are "
    "clipped.",
    "cut_share_positive": "Share of tokens with a positive advantage whose coefficient a gate or a "
    "bound holds apart from the ratio.",
    "cut_share_negative": "The same of tokens with a negative advantage.",
    "residual": "Mean distance of a completion's scaled log ratio from its advantage: what the "
    "squares of OAPL, PMD and A*-PO make small.",
    "prompt_value": "Mean value of a prompt from the stored scores of the SFT policy's samples.",
    "failed_prompt_share": "Share of completions whose prompt has stored scores of failures alone.",
    "score_reference_score": "Mean of the stored scores of the SFT policy's samples.",
    "log_ratio": "Mean log of the trained policy's probability of a completion over that of the "
    "base, in nats.",
    "advantage_magnitude": "Mean advantage of a completion, without sign.",
    "chosen_logprob": "Log-probability of the better completion of a pair.",
    "rejected_logprob": "Log-probability of the worse completion of a pair.",
    "behavior_kl_k1": "Estimate (k1) of the sampling policy's KL to the SFT policy on the rows "
    "that were trained on.",
    "behavior_kl_k2": "The same by the estimator k2.",
    "behavior_kl_k3": "The same by the estimator k3.",
}


def title(name: str, units: Units) -> str:
    """The title of a figure with its unit; its own name with spaces where none is known."""
    gold = units.gold
    titles = {
        "gold_mean": f"{gold.title}, {gold.unit}",
        "gold_std": f"{gold.title}, standard deviation",
        "gold_mean_greedy": f"{gold.title}, greedy",
        "reward_mean": f"{units.learned.title}, {units.learned.unit}",
    }
    return titles.get(name) or TITLES.get(name) or name.replace("_", " ")


def part(name: str) -> str:
    """A part of a stage's wall time in words."""
    return PARTS.get(name, name.replace("_", " "))


def speed(name: str) -> str:
    """A figure of speed in words."""
    return SPEEDS.get(name, name.replace("_", " "))


def speed_value(name: str, value: float) -> str:
    """A figure of speed with its unit: seconds as a duration, shares as per cents."""
    if name.endswith("seconds"):
        return formats.duration(value)
    if name.endswith(("_mfu", "_bandwidth_share")):
        return formats.percent(value)
    return formats.number(value)


def note(name: str) -> str:
    """One line about a figure; "" for one that is not known here."""
    return NOTES.get(name, "")
