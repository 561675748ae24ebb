"""Finds a family of decoders by its name in a config: a file of `models/`, or a module or a file of
the user's own.

A family is a module with `Config`, a frozen dataclass; `PRESETS`, instances of it by name; and
`make(config) -> Model`. A name that picks a function out of a module (`my_lab.decoders:make_wide`)
takes that function as `make`, the dataclass of its parameter as `Config`, and those of the module's
presets that are instances of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import randomness, registry
from rlhf_jax.models.api import Model
from rlhf_jax.refusal import ComponentError, Refusal, at_fault

FOLDER = "models"
USUAL = "quickstart"
"""The preset that stands for a family where none is named."""
NUMBERS = (
    "vocab_size",
    "width",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_width",
    "ffn_width",
)
COMPUTED = ("dtype", "remat", "attention")
NEEDED = (*NUMBERS, *COMPUTED)
"""Names that a shape must have, as fields or properties: runs and plans read them."""


@dataclass(frozen=True)
class Family:
    """A family of decoders: the class of its shapes, shapes by name, and the function that makes a
    model of one.
    """

    name: str
    config: type[Any]
    presets: Mapping[str, Any]
    maker: Callable[[Any], Model]

    @property
    def usual(self) -> str:
        """The name of the preset that stands for the family: `quickstart`, or its first."""
        return USUAL if USUAL in self.presets else next(iter(self.presets))

    def make(self, config: object) -> Model:
        """The model of a shape.

        Raises Refusal of the family's own for numbers that do not fit together; ComponentError,
        naming the family, for what its code raises and for a result that lacks something of
        `models.api.Model`.
        """
        with at_fault(f"making the model family {self.name}"):
            model = self.maker(config)
        wanted = [name for name in vars(Model) if not name.startswith("_")]
        missing = [name for name in wanted if not hasattr(model, name)]
        if missing:
            raise ComponentError(
                f"the model family {self.name} makes a {type(model).__name__} without "
                f"{', '.join(missing)} "
                "(see models/api.py)"
            )
        return model

    def checked(self, config: object) -> Model:
        """The model of a shape; of a family that is not of the package, its functions are traced
        once, without memory.

        Raises as `make`; ComponentError, naming the family, for a function that raises, and for
        shapes other than those of `models.api.Model`.
        """
        model = self.make(config)
        if not registry.is_of_package(FOLDER, self.name):
            _check_shapes(f"the model family {self.name}", model)
        return model


def _check_shapes(who: str, model: Model) -> None:
    """Traces `init`, `apply` and `head` on two rows of three tokens, and compares shapes."""
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 3), jnp.bool_)
    with at_fault(who, when=" in init"):
        params = jax.eval_shape(model.init, randomness.key(0))
    with at_fault(who, when=" in logical_axes"):
        model.logical_axes(params)
    with at_fault(who, when=" in apply"):
        hidden, _ = jax.eval_shape(model.apply, params, tokens, tokens, mask)
    with at_fault(who, when=" in apply with a cache"):
        cache = jax.eval_shape(lambda: model.init_cache(2, 5))
        jax.eval_shape(model.apply, params, tokens, tokens, mask, cache)
    with at_fault(who, when=" in head"):
        logits = jax.eval_shape(model.head, params, hidden)
    for function, array, wanted in (
        ("apply", hidden, model.width),
        ("head", logits, model.vocab_size),
    ):
        if array.shape != (2, 3, wanted):
            raise ComponentError(
                f"{who}: {function} gave shape {array.shape} for tokens (2, 3); accepted: (2, 3, "
                f"{wanted})"
            )


def find(name: str) -> Family:
    """The family that a name means: see the table of `registry.py`.

    Raises as `registry.entry`; Refusal, naming the family, for a module without presets, and for a
    shape that lacks something which runs or plans read.
    """
    module, attribute = registry.located(FOLDER, name)
    presets = getattr(module, "PRESETS", None)
    if not isinstance(presets, Mapping) or not presets:
        raise Refusal(
            f"model.family is {name!r}, which is no family of decoders: it has no PRESETS"
        )
    maker = registry.entry(FOLDER, name)
    config = (
        registry.annotated(maker, registry.takes_settings(FOLDER, maker) or "")
        if attribute
        else None
    )
    config = config or getattr(module, "Config", None)
    if not isinstance(config, type) or not is_dataclass(config):
        raise Refusal(f"model.family is {name!r}, whose module has no dataclass Config")
    matching = {key: preset for key, preset in presets.items() if type(preset) is config}
    if not matching:
        raise Refusal(f"model.family is {name!r}, none of whose PRESETS is a {config.__name__}")
    for key, preset in matching.items():
        if lacking := [field for field in NEEDED if not hasattr(preset, field)]:
            raise Refusal(
                f"model.family is {name!r}, whose preset {key!r} has no {', '.join(lacking)}"
            )
    return Family(name, config, matching, maker)
