"""Published losses of policy gradients, each as settings of `policy_gradient`.

`rl.algorithm("cispo")`, `--config=configs/quickstart.py:algorithm=cispo` and
`--config.algorithm.name=cispo` take a preset by its name, and its keys are those of `policy_gradient`:
`--config.algorithm.surrogate.cap=4`.

r is the ratio π / b of a token, b the behavior policy μ or the proximal policy ξ as `correction` says;
s the ratio of a completion to the power of one over its length; A the advantage. Presets that leave
`correction` at "auto" take b from the schedule of the run: see `ops/corrections.py`.
"""

from rlhf_jax.algorithms.policy_gradient import SCALARS as SCALARS
from rlhf_jax.algorithms.presets.clipped import CLIPPED
from rlhf_jax.algorithms.presets.preset import Preset
from rlhf_jax.algorithms.presets.unclipped import UNCLIPPED

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*UNCLIPPED, *CLIPPED)}


def __getattr__(name: str) -> Preset:
    """A preset by its name, as the registry asks a module for its entries."""
    if name in PRESETS:
        return PRESETS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
