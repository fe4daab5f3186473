"""Specifications of networks from the defaults of a config, but without group routers and dropout."""

import dataclasses
from typing import Any

from remind_jax.config import defaults
from remind_jax.models.spec import FusionSpec, ModelSpec, model_spec


def fusion_of(**changes: Any) -> FusionSpec:
    """The fusion blocks with these fields."""
    plain = dataclasses.replace(model_spec(defaults()).fusion, group_routers=False, dropout=0.0)
    return dataclasses.replace(plain, **changes)


def model_of(**changes: Any) -> ModelSpec:
    """The network with these fields; `fusion` from `fusion_of`."""
    plain = dataclasses.replace(model_spec(defaults()), fusion=fusion_of(), encoder_dropout=0.0)
    return dataclasses.replace(plain, **changes)
