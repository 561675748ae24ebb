"""The settings of the stage `prompt_values`."""

from dataclasses import dataclass

from rlhf_jax.config import Count


@dataclass(frozen=True)
class PromptValuesConfig:
    """Samples of the reference policy whose scores give the value of a prompt, for algorithms that
    need it. They are drawn at `rlhf.temperature`, and scored as those of RLHF are.
    """

    num_samples: Count = 8  # of each prompt; A*-PO, arXiv 2505.20686, its code
    prompts_per_batch: Count = 64  # sampled at once; a file of the run's directory each
