"""A preset: a published loss as settings of `policy_gradient`, under its own name; and the settings
that several presets share.
"""

import dataclasses
from dataclasses import dataclass, field

from rlhf_jax.algorithms import policy_gradient
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.ops.policy_gradient.advantages import Advantage
from rlhf_jax.ops.policy_gradient.surrogates import Surrogate
from rlhf_jax.types import Algorithm

BEHAVIOR = Correction(ratio_to="behavior", correction="none")
PROXIMAL = Correction(ratio_to="proximal", correction="none")
UNCORRECTED = Correction(correction="none")
BY_TOKEN = Correction(ratio_to="proximal", correction="truncate", cap=2.0)
BY_ROW = Correction(ratio_to="proximal", correction="truncate", level="sequence", cap=2.0)
CENTERED = Advantage(power=0.0)
PLAIN = Surrogate(flow="logprob", gate="none", floor=1.0, cap=1.0)
"""Coefficient 1: the gradient of log π, without a ratio."""


@dataclass(frozen=True)
class Preset:
    """Settings of `policy_gradient` that are a published loss. Called with a config, it makes the
    algorithm.

    Attributes:
      name: of the preset, and of the algorithm that it makes.
      paper: with its arXiv id.
      equation: of the paper, or the part of it that has the loss.
      formula: the loss of a token, or the coefficient c of its gradient −A c, in plain text.
      source: of the constants, and where the preset departs from the paper.
      settings: of `policy_gradient`.
    """

    name: str
    paper: str
    equation: str
    formula: str
    source: str
    settings: policy_gradient.Config

    def __call__(self, config: policy_gradient.Config) -> Algorithm:
        return policy_gradient.policy_gradient(config, self.name)

    @property
    def Config(self) -> type[policy_gradient.Config]:
        """The dataclass of `policy_gradient`'s settings whose defaults are the preset's."""
        return _CONFIGS.setdefault(self, _config_of(self))


def _config_of(preset: Preset) -> type[policy_gradient.Config]:
    base = policy_gradient.Config
    fields = [
        (f.name, f.type, field(default=getattr(preset.settings, f.name)))
        for f in dataclasses.fields(base)
    ]
    made = dataclasses.make_dataclass(
        "Config", fields, bases=(base,), frozen=True, namespace={"__doc__": f"{preset.name}."}
    )
    made.__module__ = base.__module__  # an instance names its algorithm by its module
    return made


_CONFIGS: dict[Preset, type[policy_gradient.Config]] = {}
