"""Presets that cap, mask or damp the ratio in another way than by a clip, or have none."""

from rlhf_jax.algorithms.policy_gradient import Config
from rlhf_jax.algorithms.presets.preset import BEHAVIOR, CENTERED, PLAIN, UNCORRECTED, Preset
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.ops.policy_gradient.advantages import Advantage
from rlhf_jax.ops.policy_gradient.penalties import Penalty
from rlhf_jax.ops.policy_gradient.surrogates import Surrogate

UNCLIPPED = (
    # a weight with a cap, or none
    Preset(
        "reinforce",
        "Williams 1992; Ahmadian et al. 2024, arXiv 2402.14740",
        "arXiv 2402.14740, eq. 6, with the mean of all G",
        "c = 1",
        "no constants; the baseline is the mean of the group",
        Config(surrogate=PLAIN, correction=BEHAVIOR, advantage=CENTERED, aggregation="rows"),
    ),
    Preset(
        "reinforce_is",
        "importance sampling, as verl's bypass mode has it",
        "verl, docs/algo/rollout_corr, preset bypass_pg_is",
        "c = min(Π r of the completion, 2)",
        "cap 2 of verl's preset",
        Config(
            surrogate=Surrogate(level="sequence", flow="logprob", gate="none", cap=2.0),
            correction=BEHAVIOR,
            advantage=CENTERED,
            aggregation="rows",
        ),
    ),
    Preset(
        "topr",
        "Le Roux et al. 2025, arXiv 2503.14286",
        "eq. 8, as ROLL cites it",
        "c = 1 for A > 0, min(Π r of the completion, 1) for A ≤ 0",
        "bounds 0 and 1 of the paper; ROLL and Trinity-RFT take the ratio of each token: "
        "surrogate.level=token",
        Config(
            surrogate=Surrogate(
                level="sequence", flow="logprob", gate="none", cap=1.0, positive="one"
            ),
            correction=BEHAVIOR,
            advantage=CENTERED,
            aggregation="rows",
        ),
    ),
    Preset(
        "vcpo",
        "VCPO 2026, arXiv 2602.17616",
        "its estimator, with the baseline OPOB of the group's others",
        "c = min(Π r of the completion, 8); A from the baseline of least variance, over the deviation",
        "cap 8 of its recipe; the norm of each gradient by a proxy. The paper's baseline holds the "
        "sample itself, and a rare winner is then its own baseline: advantage.baseline="
        "minimum_variance. Its step size is rlhf.learning_rate_scale.rule=sqrt_ess, which a preset "
        "cannot set",
        Config(
            surrogate=Surrogate(level="sequence", flow="logprob", gate="none", cap=8.0),
            correction=BEHAVIOR,
            advantage=Advantage(baseline="leave_one_out_minimum_variance"),
            aggregation="sequence",
        ),
    ),
    Preset(
        "asymre",
        "Arnal et al. 2025, arXiv 2506.20520",
        "its objective",
        "c = 1, A = score − (mean − 0.1)",
        "shift −0.1 of the paper",
        Config(
            surrogate=PLAIN,
            correction=BEHAVIOR,
            advantage=Advantage(power=0.0, shift=-0.1),
            aggregation="rows",
        ),
    ),
    Preset(
        "dro",
        "Richemond et al. 2024, DRO, arXiv 2405.19107, as verl has it for tokens",
        "verl, policy_loss dro",
        "c = 1; and β/2 (log r)², β 0.05",
        "β 0.05 of the test of verl's code, which has no default; the paper has a critic in place of the "
        "group's mean",
        Config(
            surrogate=PLAIN,
            correction=BEHAVIOR,
            advantage=CENTERED,
            penalty=Penalty(drift=0.025),
        ),
    ),
    Preset(
        "cispo",
        "MiniMax 2025, arXiv 2506.13585; ScaleRL, arXiv 2510.13786",
        "arXiv 2506.13585, eq. 4 and 5",
        "c = min(r, 5)",
        "no lower bound and cap 5, one of the values 4, 5 and 8 between which ScaleRL finds no "
        "difference; the ratio is to the behavior policy",
        Config(surrogate=Surrogate(flow="logprob", gate="none", cap=5.0), correction=BEHAVIOR),
    ),
    Preset(
        "m2po",
        "Zheng et al. 2025, arXiv 2510.01161",
        "its masked objective",
        "c = r on the tokens that keep the mean of (log ρ)² below 0.04",
        "0.04 of the paper; the second moment is of the round",
        Config(
            surrogate=Surrogate(gate="none"),
            correction=Correction(ratio_to="behavior", correction="second_moment"),
        ),
    ),
    # bounds on the distance from the behavior policy, and soft gates
    Preset(
        "dppo_tv",
        "DPPO 2026, arXiv 2602.04879",
        "its mask by total variation",
        "c = min(r, 20) unless A > 0 and π − μ > 0.15, or A < 0 and π − μ < −0.15",
        "δ 0.15 of verl's example, cap 20 of §5.4; A without deviation, constant length",
        Config(
            surrogate=Surrogate(
                flow="logprob", gate="total_variation", low=0.15, high=0.15, cap=20.0
            ),
            correction=BEHAVIOR,
            advantage=CENTERED,
            aggregation="constant_length",
        ),
    ),
    Preset(
        "dppo_kl",
        "DPPO 2026, arXiv 2602.04879",
        "its mask by the KL of two outcomes",
        "c = min(r, 20) unless KL(μ ‖ π) of the token > 0.05 and π has moved the way A pushes it",
        "δ 0.05 of verl's example, cap 20 of §5.4; A without deviation, constant length",
        Config(
            surrogate=Surrogate(flow="logprob", gate="binary_kl", low=0.05, high=0.05, cap=20.0),
            correction=BEHAVIOR,
            advantage=CENTERED,
            aggregation="constant_length",
        ),
    ),
    Preset(
        "prime_rl",
        "prime-rl, the default loss of 2026-08",
        "no paper; its docs/algorithms",
        "c = r unless A > 0 and π − μ > 0.2, or A < 0 and π − μ < −0.2; and 0.001 (log r)²",
        "δ 0.2 and κ 0.001 of its code of 2026-08-21; the default has changed five times in that year",
        Config(
            surrogate=Surrogate(gate="total_variation", low=0.2, high=0.2),
            correction=BEHAVIOR,
            advantage=CENTERED,
            penalty=Penalty(drift=1e-3),
        ),
    ),
    Preset(
        "prime_rl_ipo",
        "prime-rl, its loss named ipo",
        "no paper; its code",
        "c = r where |π − μ| ≤ 0.1, for either sign of A; and 0.001 (log r)²",
        "bound 0.1 and κ 0.001 of its code of 2026-08-21; no relation to the loss of pairs of that name",
        Config(
            surrogate=Surrogate(gate="variation_band", low=0.1, high=0.1),
            correction=BEHAVIOR,
            advantage=CENTERED,
            penalty=Penalty(drift=1e-3),
        ),
    ),
    Preset(
        "sapo",
        "Soft adaptive policy optimization 2025, arXiv 2511.20347",
        "its gated objective",
        "c = 4 σ (1 − σ) r, σ = sigmoid(τ (r − 1)), τ 1 (A > 0), 1.05 (A ≤ 0)",
        "τ 1 and 1.05 of the paper",
        Config(surrogate=Surrogate(gate="soft"), correction=UNCORRECTED, aggregation="sequence"),
    ),
    Preset(
        "vespo",
        "VESPO, as TRL 1.16 has it",
        "TRL, loss_type vespo",
        "c = exp(λ + k log w − λ w), w = Π r, (k, λ) = (2, 3) for A > 0, (3, 2) for A ≤ 0",
        "(k, λ) of TRL 1.16",
        Config(
            surrogate=Surrogate(
                level="sequence",
                flow="logprob",
                gate="gamma",
                shape_positive=(2.0, 3.0),
                shape_negative=(3.0, 2.0),
            ),
            correction=BEHAVIOR,
        ),
    ),
)
