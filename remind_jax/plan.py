"""What a run would cost: parameters, operations, memory; nothing is trained and no array is allocated.

    remind plan --config=embed:size=paper

    --config=NAME, --config.KEY=VALUE, --quick    as in remind train

For the data sets of the paper no data are read either. Operations are those of products and
convolutions, 2 a multiply-add (`remind_jax/ops/flops.py`); those "present" are the mean over
samples where encoders run on those that have their modality (encode).
"""

from typing import Any

from remind_jax import cli
from remind_jax.methods import in_stack
from remind_jax.training.cost import GIB, Plan, StackPlan, make_plan, plan_stack

# Table 17 of the paper, measured on EMBED: parameters in millions, GFLOP per sample.
PAPER = {"embed": {"soft_moe": (958.0, 146.7), "remind": (960.0, 146.9)}}


def _reading_order(part: str) -> tuple[int, str]:
    starts = ("encoders/", "imputation", "modality_embedding", "block_")
    return next((i for i, start in enumerate(starts) if part.startswith(start)), len(starts)), part


def _giga(*operations: int) -> tuple[str, ...]:
    return tuple(f"{x / 1e9:.3f}" for x in operations)


def describe(config: Any, plan: Plan) -> str:
    """The plan as text."""
    rows = [("part", "parameters", "GFLOP a sample", "present")]
    rows += [
        (part or "other", f"{plan.parameters[part]:,}", *_giga(plan.sample_flops[part], plan.present_flops[part]))
        for part in sorted({**plan.parameters, **plan.sample_flops}, key=_reading_order)
    ]
    million = plan.parameters.total() / 1e6
    rows.append(("all", f"{million:.1f} M", *_giga(plan.sample_flops.total(), plan.present_flops.total())))
    published = PAPER.get(config.data.source, {}) if config.size == "paper" else {}
    for method, (parameters, operations) in published.items():
        rows.append((f"paper, Table 17, {method}", f"{parameters:.0f} M", f"{operations}", ""))
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {first:>13}  {second:>14}  {third:>9}".rstrip() for name, first, second, third in rows]
    lines.append(f"\ntokens in the fusion: {plan.tokens}; batch of {config.train.batch_size}; float32")
    for stage in plan.stages:
        lines.append(
            f"stage {stage.name}: {stage.trained / 1e6:.1f} M trained; weights, gradient, optimizer "
            f"{stage.state_bytes / GIB:.2f} GiB; activations at most {stage.activation_bytes / GIB:.2f} GiB; "
            f"{stage.step_flops / 1e12:.3f} TFLOP a step"
        )
    cache = plan.row_bytes * plan.samples / GIB
    lines.append(f"inputs: {plan.row_bytes:,} bytes a sample with all modalities, {cache:.2f} GiB for {plan.samples:,}")
    return "\n".join(lines)


def describe_stack(config: Any, plan: StackPlan) -> str:
    """The plan of a stack as text, next to one run of `remind`."""
    folds, one = config.data.folds, max(plan.one.train_flops, 1)
    lines = [f"{folds} folds, before any stage ends early; times: operations of one run of remind\n"]
    lines.append(f"{'candidate':<24} {'networks':>8} {'parameters':>12} {'TFLOP':>10} {'times':>6}")
    for name, each in plan.networks.items():
        networks, work = folds * in_stack(config, name, -1).ensemble, folds * each.train_flops
        parameters = folds * each.parameters.total()
        lines.append(f"{name:<24} {networks:>8} {parameters:>12,} {work / 1e12:>10.3f} {work / one:>6.1f}")
    work = folds * sum(each.train_flops for each in plan.networks.values())
    lines.append(f"{'all':<24} {'':>8} {'':>12} {work / 1e12:>10.3f} {work / one:>6.1f}")
    return "\n".join([*lines, f"and {folds} fits of each of: {', '.join(plan.plain) or 'no plain model'}"])


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    config, _ = cli.parse_config(arguments)
    tell, count = (describe_stack, plan_stack) if config.method == "remind_stack" else (describe, make_plan)
    more = f"\nand one fit of each plain model among {config.stack}" * (config.method == "remind_blend")
    print(f"{config.method} on {config.data.source}, size={config.size}\n\n{tell(config, count(config))}{more}")


if __name__ == "__main__":
    cli.run(main, __doc__)
