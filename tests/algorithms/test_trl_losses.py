"""The losses of TRL's GRPO trainer on random ragged rows, in float64, beside ours: loss and gradient.

TRL's own method computes them; its forward pass is replaced by given log-probabilities.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.algorithms import dr_grpo, grpo
from rlhf_jax.algorithms.policy_gradient import Config, policy_gradient
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.ops.policy_gradient.surrogates import Surrogate
from rlhf_jax.types import Algorithm, Outputs, Scores
from rlhf_jax.updating import denominator
from tests.algorithms.test_policy_gradient import samples_of

torch = pytest.importorskip("torch", reason="torch is not installed; pip install -e .[bench]")
trl = pytest.importorskip(
    "trl.trainer.grpo_trainer", reason="trl is not installed; pip install -e .[bench]"
)

P, G, C = 3, 4, 9
BEHAVIOR = Correction("behavior", "none")


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # or TRL's 1.05 of SAPO is a float32
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(before)


@dataclass(frozen=True)
class Peer:
    """Settings of TRL's trainer that are the loss of one of our algorithms.

    Attributes:
      ours: the algorithm.
      loss_type, level: of TRL; "sequence" is the mean over a completion.
      low, high: `epsilon` and `epsilon_high`.
      beta: weight of the KL.
      weights: cap of importance weights of the sampler; the second field says of tokens or rows.
      others: further settings.
    """

    ours: Algorithm
    loss_type: str
    level: str = "token"
    low: float = 0.2
    high: float = 0.2
    beta: float = 0.0
    weights: tuple[float, str] | None = None
    mask_threshold: float | None = None
    others: dict[str, Any] = field(default_factory=dict)


def preset(name: str) -> Algorithm:
    return registry.make("algorithms", name, registry.settings("algorithms", name)())


def pieces(aggregation: str, **surrogate: Any) -> Algorithm:
    return policy_gradient(
        Config(surrogate=Surrogate(**surrogate), correction=BEHAVIOR, aggregation=aggregation)  # type: ignore[arg-type]
    )


GRPO = grpo.Config(correction=BEHAVIOR)
PEERS = {
    "grpo": Peer(grpo.grpo(GRPO), "grpo", beta=0.04),
    "grpo, unbiased KL": Peer(
        grpo.grpo(replace(GRPO, kl="k3_weighted")), "grpo", beta=0.04, others={"use_bias_correction_kl": True}
    ),
    "grpo, ratio of completions": Peer(
        grpo.grpo(replace(GRPO, kl_weight=0.0, level="sequence_mean")), "grpo", "sequence"
    ),
    "dr_grpo": Peer(dr_grpo.dr_grpo(dr_grpo.Config(correction=BEHAVIOR)), "dr_grpo"),
    "bnpo": Peer(pieces("token"), "bnpo"),
    "luspo": Peer(pieces("rows", level="sequence_mean"), "luspo", "sequence"),
    "dapo": Peer(preset("dapo"), "dapo", high=0.28),
    "dual_clip": Peer(preset("dual_clip"), "dapo", others={"delta": 3.0}),
    "two_sided": Peer(preset("two_sided"), "dapo", beta=0.001, others={"delta": 4.0}),
    "cispo": Peer(preset("cispo"), "cispo", high=5.0),
    "gspo": Peer(preset("gspo"), "grpo", "sequence", 3e-4, 4e-4),
    "gspo_token": Peer(preset("gspo_token"), "grpo", "sequence", 3e-4, 4e-4),
    "sapo": Peer(preset("sapo"), "sapo"),
    "vespo": Peer(preset("vespo"), "vespo"),
    "deepseek_v32": Peer(
        preset("deepseek_v32"), "grpo", beta=0.001, mask_threshold=0.1, others={"use_bias_correction_kl": True}
    ),
    "token_tis": Peer(preset("token_tis"), "dapo", weights=(2.0, "token")),
    "seq_tis": Peer(preset("seq_tis"), "dapo", weights=(2.0, "sequence")),
    "redit": Peer(preset("redit"), "grpo", beta=0.04),
}  # fmt: skip


def draw(seed: int):
    """Mask, scores and log-probabilities of 12 ragged rows; one has one token."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, C + 1, P * G)
    lengths[1] = 1
    mask = np.arange(C) < lengths[:, None]
    behavior = np.log(random.uniform(0.05, 0.9, mask.shape))
    proximal = np.minimum(behavior + 0.3 * random.normal(size=mask.shape), -0.01)
    policy = np.minimum(proximal + 0.6 * random.normal(size=mask.shape), -0.01)
    reference = np.log(random.uniform(0.05, 0.9, mask.shape))
    return mask, random.normal(size=P * G), policy, behavior, proximal, reference


def ours(algorithm: Algorithm, seed: int):
    """Loss, gradient, and the advantage of each row."""
    mask, score, policy, behavior, proximal, reference = draw(seed)
    scores = Scores(
        *(jnp.asarray(score),) * 3,
        reference_logprob_BC=jnp.asarray(reference),
        proximal_logprob_BC=jnp.asarray(proximal),
    )
    batch = algorithm.credit(samples_of(mask, behavior, G), scores)
    count = denominator(batch.mask_RC, algorithm.aggregation, batch.counted_R)

    def loss(logprob_RC: jax.Array) -> jax.Array:
        return (
            algorithm.losses["policy"](Outputs(logprob_RC, jnp.zeros_like(logprob_RC)), batch)[0]
            / count
        )

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(policy))
    assert batch.advantage_RC is not None
    return float(value), np.asarray(gradient), np.asarray(batch.advantage_RC[:, 0])


def theirs(peer: Peer, seed: int, advantage: np.ndarray):
    """Loss and gradient by the trainer's own method."""
    mask, _, *logs = draw(seed)
    policy, behavior, proximal, reference = (torch.tensor(log) for log in logs)
    policy.requires_grad_()
    counted = torch.tensor(mask).long()
    inputs: dict[str, Any] = {
        "prompt_ids": counted, "prompt_mask": counted, "completion_ids": counted, "completion_mask": counted,
        "advantages": torch.tensor(advantage), "ref_per_token_logps": reference,
        "old_per_token_logps": behavior if peer.weights is None else proximal,
        "num_items_in_batch": counted.sum(),
    }  # fmt: skip
    if peer.weights is not None:
        cap, level = peer.weights
        log = (proximal - behavior) * counted
        log = log if level == "token" else log.sum(-1, keepdim=True)
        inputs["importance_sampling_ratio"] = torch.clamp(torch.exp(log), max=cap)
    settings = {
        "delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1,
        "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
    } | peer.others  # fmt: skip

    class Trainer(trl.GRPOTrainer):
        def __init__(self) -> None:  # no model, no data
            pass

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any):
            return policy, torch.zeros_like(policy), None

    trainer: Any = Trainer()
    trainer.args = SimpleNamespace(**settings)
    trainer.model = SimpleNamespace(training=False)
    trainer.accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
    )
    trainer._metrics = {"eval": defaultdict(list)}
    values = {
        "top_entropy_quantile": 1.0, "aux_loss_enabled": False, "_entropy_bonus_enabled": False,
        "off_policy_mask_threshold": peer.mask_threshold, "importance_sampling_level": peer.level,
        "beta": peer.beta, "loss_type": peer.loss_type, "epsilon_low": peer.low, "epsilon_high": peer.high,
        "use_vllm": peer.weights is not None, "vllm_importance_sampling_correction": peer.weights is not None,
        "max_completion_length": C, "current_gradient_accumulation_steps": 1,
    }  # fmt: skip
    for name, value in values.items():
        setattr(trainer, name, value)
    loss = trainer._compute_loss(None, inputs)
    loss.backward()
    return float(loss.detach()), policy.grad.numpy()


def assert_same(peer: Peer, *seeds: int) -> None:
    for seed in seeds:
        loss, gradient, advantage = ours(peer.ours, seed)
        other_loss, other_gradient = theirs(peer, seed, advantage)
        np.testing.assert_allclose(loss, other_loss, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(gradient, other_gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", PEERS)
def test_loss_and_gradient_are_those_of_trl(name) -> None:
    assert_same(PEERS[name], 0, 1)


@pytest.mark.parametrize("name", PEERS)
def test_another_constant_of_trl_is_noticed(name) -> None:
    """A bound of the clip, the cap, or a temperature."""
    peer = PEERS[name]
    others = {"sapo_temperature_neg": 1.06, "vespo_k_pos": 2.01}
    changed = replace(peer, high=peer.high / 2, low=peer.low / 2, others=peer.others | others)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(changed, 0, 1, 2)
