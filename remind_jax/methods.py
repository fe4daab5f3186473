"""What a sweep can run under a name: methods, plain models, and tables of variants."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from remind_jax.errors import UserError, did_you_mean

PLAIN = ("logistic_regression", "gradient_boosting")
"""Models of remind_jax.studies.baselines, which need no method of the config."""


class Variant(NamedTuple):
    """A named entry of a sweep.

    Attributes:
      name: in tables and in the names of run folders.
      method: of the config's argument string.
      changes: keys of the config and their values, over whatever the command line says.
      shares: keys of whole numbers and what part of the config's own value they become.
    """

    name: str
    method: str
    changes: tuple[tuple[str, Any], ...] = ()
    shares: tuple[tuple[str, float], ...] = ()

    def flags(self, config: Any) -> list[str]:
        """The command-line flags that make a config this variant.

        Args:
          config: of the method as the command line has it.
        """
        values = list(self.changes)
        for key, share in self.shares:
            value = config
            for part in key.split("."):
                value = value[part]
            values.append((key, max(1, round(share * value))))
        return [f"--config.{key}={value}" for key, value in values]


def _plus(name: str, **changes: Any) -> Variant:
    """`remind_plus` with something else; two underscores stand for the dot of a key."""
    return Variant(name, "remind_plus", tuple((key.replace("__", "."), value) for key, value in changes.items()))


TABLES: dict[str, tuple[Variant, ...]] = {
    # Ablation: what group DRO and the group routers each add.
    "4": (
        Variant("soft_moe", "soft_moe"),
        Variant("remind_no_dro", "remind_no_dro"),
        Variant("remind_no_specialization", "remind_no_specialization"),
        Variant("remind", "remind"),
    ),
    # Sensitivity. What Table 16 calls η is γ of Eq. 4 (section 7.6 has the same runs under that name); its 32, 64 and
    # 128 experts are a quarter, a half and all of those of the main experiments.
    "16": (
        Variant("remind", "remind"),
        Variant("dro_gamma_0.1", "remind", (("dro.gamma", 0.1),)),
        Variant("dro_gamma_0.5", "remind", (("dro.gamma", 0.5),)),
        Variant("experts_quarter", "remind", shares=(("fusion.experts", 0.25),)),
        Variant("experts_half", "remind", shares=(("fusion.experts", 0.5),)),
        Variant("imputation_zero", "remind", (("model.imputation", "zero"),)),
        Variant("residual_sinusoidal", "remind", (("fusion.residual_init", "sinusoidal"),)),
    ),
    # What each part of our preset adds, and parts that it has not (docs/remind_plus.md).
    "remind_plus": (
        Variant("soft_moe", "soft_moe"),
        Variant("remind_plus", "remind_plus"),
        _plus("one_network", ensemble=1, ensemble_plain=0),
        _plus("eight_networks", ensemble=8, ensemble_plain=4),
        _plus("eight_members", ensemble=1, ensemble_plain=0, model__members=8),
        _plus("all_with_group_parts", ensemble_plain=0),
        _plus("without_linear_path", model__wide=False),
        _plus("without_modality_embedding", model__modality_embedding=False),
        _plus("numbers_standard", data__numbers="standard"),
        _plus("numbers_quantile", data__numbers="quantile"),
        _plus("numbers_periodic", data__numbers="periodic"),
        _plus("modality_dropout", train__hide_samples=0.3),
        _plus("distilled", train__hide_samples=0.3, objective__distill_weight=1.0),
        _plus("prior_adjusted", eval__adjust_prior="macro_f1"),
    ),
}


def choose(names: str, table: str, methods: Sequence[str]) -> list[Variant]:
    """The variants that a command line names.

    Args:
      names: separated by commas; `all` is every variant of the table, without a table every method and plain model.
      table: a key of `TABLES`, empty for none.
      methods: of the config's folder. With a table its variants come first, so that `remind` is that of the table.

    Raises:
      UserError: a name or the table is unknown.
    """
    if table and table not in TABLES:
        raise UserError(f"table={table} is not a sweep; known: {', '.join(TABLES)}")
    plain = [Variant(name, name) for name in PLAIN]
    known = {variant.name: variant for variant in (*(Variant(m, m) for m in methods), *plain, *TABLES.get(table, ()))}
    if names == "all":
        return list(TABLES[table]) if table else list(known.values())
    chosen = list(dict.fromkeys(filter(None, names.split(","))))
    for name in chosen:
        if name not in known:
            raise UserError(f"unknown method {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    if not chosen:
        raise UserError("no methods: name some as --methods=soft_moe,remind or say --methods=all")
    return [known[name] for name in chosen]
