"""Presets that clip the ratio as PPO does, around 1 and by the sign of the advantage."""

import math

from rlhf_jax.algorithms.policy_gradient import Config
from rlhf_jax.algorithms.presets.preset import (
    BEHAVIOR,
    BY_ROW,
    BY_TOKEN,
    CENTERED,
    PROXIMAL,
    Preset,
)
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.ops.policy_gradient.advantages import Advantage
from rlhf_jax.ops.policy_gradient.penalties import Penalty
from rlhf_jax.ops.policy_gradient.row_filters import RowFilter
from rlhf_jax.ops.policy_gradient.surrogates import Surrogate

CLIPPED = (
    # clips of the token's ratio
    Preset(
        "dapo",
        "Yu et al. 2025, arXiv 2503.14476",
        "§3.1 to §3.3: the loss; `rlhf.oversample` is its sampling, `rlhf.scoring.overlong` its penalty on length",
        "c = r where r < 1.28 (A > 0), r > 0.8 (A < 0)",
        "clip 0.2 and 0.28, mean over tokens and no KL of the paper; flat groups leave the denominator",
        Config(surrogate=Surrogate(low=0.2, high=0.28), filter=RowFilter(flat="leave_out")),
    ),
    Preset(
        "dual_clip",
        "Ye et al. 2020, arXiv 1912.09729",
        "§4",
        "c = r where r < 1.2 (A > 0), 0.8 < r ≤ 3 (A < 0)",
        "far bound 3 of the paper and of verl, clip 0.2 of PPO",
        Config(surrogate=Surrogate(far=3.0)),
    ),
    Preset(
        "two_sided",
        "Prime Intellect 2025, INTELLECT-2, arXiv 2505.07291",
        "§4.1",
        "c = r where r < 1.2 (A > 0), 0.8 < r ≤ 4 (A < 0)",
        "δ 4, clip 0.2 and KL weight 0.001 of the paper",
        Config(surrogate=Surrogate(far=4.0), penalty=Penalty("k3", 0.001)),
    ),
    Preset(
        "reinforce_pp",
        "Hu 2025, REINFORCE++, arXiv 2501.03262",
        "its loss with the KL in the reward of each token",
        "c = r where r < 1.2 (A > 0), r > 0.8 (A < 0); A whitened over tokens",
        "clip 0.2 of PPO, KL weight 0.01 of OpenRLHF; whitening over the tokens of the round with the unbiased "
        "variance, as verl does it",
        Config(
            advantage=Advantage("none", power=0.0, whiten="tokens"),
            penalty=Penalty("k1_in_return", 0.01),
        ),
    ),
    Preset(
        "reinforce_pp_baseline",
        "Hu 2025, REINFORCE++, arXiv 2501.03262",
        "its variant with a baseline of the group",
        "c = r where r < 1.2 (A > 0), r > 0.8 (A < 0); A whitened over tokens",
        "as reinforce_pp; the KL is subtracted from the score before the mean of the group, as verl "
        "does it",
        Config(
            advantage=Advantage("mean", power=0.0, whiten="tokens"),
            penalty=Penalty("k1_in_score", 0.01),
        ),
    ),
    Preset(
        "a3po",
        "A-3PO 2025, arXiv 2512.06547",
        "its interpolated proximal policy",
        "c = r where r^(1 − α) < 1.2 (A > 0), r^(1 − α) > 0.8 (A < 0)",
        "clip 0.2 of PPO; α ½ is that of samples two updates old. interpolation=0 with interpolation_by=age "
        "takes (d − 1) / d for each token that is d updates old, as AReaL does",
        Config(correction=BEHAVIOR, interpolation=0.5),
    ),
    Preset(
        "redit",
        "Wei et al. 2025, ReDit, arXiv 2506.18631",
        "its score with Gaussian noise, before the group's mean",
        "c = r where r < 1.2 (A > 0), r > 0.8 (A < 0); A of scores with noise",
        "deviation 0.05 of the noise; clip, mean over completions and KL weight 0.04 of grpo. In a group "
        "whose scores are equal the advantage is the noise alone, over its own deviation",
        Config(
            advantage=Advantage(noise=0.05),
            penalty=Penalty("k3", 0.04),
            aggregation="sequence",
        ),
    ),
    Preset(
        "mu_grpo",
        "Tian et al. 2026, μ-GRPO, arXiv 2605.17570",
        "its relaxed clip and its veto of negative advantages",
        "c = r where r < 2 (A > 0), r > 0.5 (A < 0), and 0 for A < 0 from a completion's first token with "
        "r < 0.5 on",
        "bounds 0.5 and 2 and the trigger at r = 0.5 are ours: we have not seen the paper's. Its stages are "
        "rlhf.sync_every and rlhf.staged, which a preset cannot set",
        Config(
            surrogate=Surrogate(low=0.5, high=1.0),
            correction=BEHAVIOR,
            filter=RowFilter(veto=math.log(2.0)),
        ),
    ),
    # the decoupled loss: the clip bounds π / ξ, a weight or a filter of rows the staleness ξ / μ
    Preset(
        "token_tis",
        "Hilton et al. 2022, arXiv 2110.00641; AReaL, arXiv 2505.24298",
        "the decoupled objective of arXiv 2505.24298",
        "c = min(ξ/μ, 2) r where r < 1.2 (A > 0), r > 0.8 (A < 0), r = π/ξ",
        "cap 2 of verl's docs/algo/rollout_corr, clip 0.2 of PPO",
        Config(correction=BY_TOKEN),
    ),
    Preset(
        "seq_tis",
        "truncated importance sampling of completions, as verl has it",
        "verl, docs/algo/rollout_corr",
        "as token_tis with the weight min(Π ξ/μ of the completion, 2)",
        "cap 2, the least of the 2 to 10 of verl's page",
        Config(correction=BY_ROW),
    ),
    Preset(
        "icepop",
        "IcePop 2025, as OpenRLHF has it",
        "the masked weight of each token",
        "c = ξ/μ r where 0.5 ≤ ξ/μ ≤ 5, r < 1.2 (A > 0), r > 0.8 (A < 0)",
        "band 0.5 to 5 of OpenRLHF, clip 0.2 of PPO",
        Config(correction=Correction("proximal", "mask", floor=0.5, cap=5.0)),
    ),
    Preset(
        "geo_rs",
        "Geo-RS 2025, arXiv 2512.23075",
        "its filter of completions by the geometric mean",
        "as token_tis, and 0 in completions with (Π ξ/μ)^(1/T) outside 0.999 to 1.001",
        "band 0.999 to 1.001 of verl's docs/algo/rollout_corr; cap 2 as token_tis",
        Config(
            correction=BY_TOKEN,
            filter=RowFilter("geometric", 0.999, 1.001, policy="proximal"),
        ),
    ),
    Preset(
        "seq_mis",
        "masked importance sampling of completions, as verl has it",
        "verl, docs/algo/rollout_corr, seq_sum_k1",
        "as seq_tis, and 0 in completions with Π ξ/μ outside 0.5 to 2",
        "band 0.5 to 2 of verl's page",
        Config(correction=BY_ROW, filter=RowFilter("product", 0.5, 2.0, policy="proximal")),
    ),
    Preset(
        "k3_rs",
        "rejection of completions by k3, as verl has it",
        "verl, docs/algo/rollout_corr, seq_mean_k3",
        "as token_tis, and 0 in completions whose mean k3 of ξ/μ is above 0.01",
        "0.01, the largest of the 0.001 to 0.01 of verl's page; cap 2 as token_tis",
        Config(correction=BY_TOKEN, filter=RowFilter("k3_mean", high=0.01, policy="proximal")),
    ),
    Preset(
        "trm",
        "trust-region masking 2025, arXiv 2512.23075",
        "its bound on the largest divergence of a completion's tokens",
        "c = r where r < 1.2 (A > 0), r > 0.8 (A < 0), and 0 in completions with max |log ξ/μ| > log 2",
        "the paper bounds the KL of whole distributions; the bound on sampled tokens, a ratio of ½ to "
        "2, is ours",
        Config(
            correction=PROXIMAL,
            filter=RowFilter("largest", high=math.log(2.0), policy="proximal"),
        ),
    ),
    # completions
    Preset(
        "gspo",
        "Zheng et al. 2025, arXiv 2507.18071",
        "eq. 5",
        "c = s where s < 1 + 4e-4 (A > 0), s > 1 − 3e-4 (A < 0)",
        "bounds 3e-4 and 4e-4 and no KL of the paper",
        Config(
            surrogate=Surrogate(level="sequence_mean", low=3e-4, high=4e-4),
            correction=Correction(level="sequence_mean"),
            aggregation="sequence",
        ),
    ),
    Preset(
        "gspo_token",
        "Zheng et al. 2025, arXiv 2507.18071",
        "eq. 14 and 15",
        "as gspo, with the advantage of each token",
        "as gspo; the two differ only where advantages differ within a completion",
        Config(
            surrogate=Surrogate(level="sequence_mean", low=3e-4, high=4e-4),
            correction=Correction(level="sequence_mean"),
            aggregation="sequence",
        ),
    ),
    Preset(
        "gmpo",
        "Zhao et al. 2025, arXiv 2507.20673",
        "its clipped geometric mean",
        "c = exp(mean of log r, clipped on the side of A's sign) where log r < 0.4 (A > 0), > −0.4 (A < 0)",
        "bounds ±0.4 of log r of the paper",
        Config(
            surrogate=Surrogate(gate="log_clip", low=0.4, high=0.4),
            correction=Correction(level="sequence_mean"),
            aggregation="sequence",
        ),
    ),
    Preset(
        "deepseek_v32",
        "DeepSeek-AI 2025, DeepSeek-V3.2, arXiv 2512.02556",
        "§3.1",
        "as PPO's clip; 0 in completions with A < 0 and mean of log μ/π > 0.1; KL weighted by r",
        "clip 0.2 of PPO; the paper gives neither δ nor the weight of the KL: δ 0.1 is within the 0.05 "
        "to 0.2 of Trinity-RFT, and 0.001 is the weight of DeepSeek-R1",
        Config(
            correction=BEHAVIOR,
            filter=RowFilter("one_sided", high=0.1),
            advantage=CENTERED,
            penalty=Penalty("k3_weighted", 0.001),
            aggregation="sequence",
        ),
    ),
)
