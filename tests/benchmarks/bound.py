"""What a training step of the published sizes can reach on a GPU at best, by the kernels it consists of.

    python -m tests.benchmarks.bound [--tokens 8192] [--crops 16] [--rate 700e12] [--bandwidth 4.0e12]

Needs no GPU: forward and backward of the trainer's model run on the meta device, and each kernel is counted with the
least time that its operations or its bytes take (`kernel_costs`); launches and the optimizer's step are left out. So
this is no measurement but what no measurement can beat. Rate and bandwidth are assumptions: an H200 has 989e12
operations and 4.8e12 bytes a second on its data sheet, of which large products and copies reach seven to eight tenths.

Fused kernels (model.liger, model.compile) count as one kernel for each operation that they replace. Beside it, the
published way on the same samples: one at a time, padded crops, sdpa, float32 logits at every position, peft's own
layers, nothing recomputed.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.figures import Figure, command, counted
from tests.benchmarks.full_size import (
    GRIDS,
    arguments_of,
    config_of,
    full_config,
    pack_of,
    random_model,
    samples,
)
from tests.benchmarks.kernel_costs import KernelCosts, as_one_kernel, flash_attention
from tests.benchmarks.pairs import print_table
from tests.benchmarks.published import published_states
from train.engine import part_sizes
from train.flops import Arithmetic
from train.model.kernels import Kernels, choose_kernels, use_kernels
from train.model.lora import add_lora
from train.model.modeling import Phi3VForCausalLM
from train.pipeline.batch import Batch, Encoded
from train.tuning import prepare

META = torch.device("meta")
HEADER = ("trained", "way", "recomputed", "ms a step", "pictures/s", "of the rate", "largest kernels")
ASKED = 0.5
"""Of the rate: what full fine-tuning and LoRA are to reach, so what the kernels have to let through."""


def fused(costs: KernelCosts) -> Kernels:
    """The operations between the matrix products, each as one kernel."""
    plain = choose_kernels(liger=False, compiled=False)

    def one(name: str) -> Callable[..., Any]:
        return as_one_kernel(costs, name, getattr(plain, name), lambda *inputs: (0.0, 0.0))

    return plain._replace(**{name: one(name) for name in ("norm", "gate", "rotate", "quick_gelu")})


def bare_model(recomputed: bool) -> Phi3VForCausalLM:
    """The published sizes in bf16."""
    model = random_model(full_config(), META, torch.bfloat16).train()
    model.set_attn_implementation("flash")
    model.set_checkpointing(decoder=recomputed, vision=recomputed)
    return model


def costs_of(options: argparse.Namespace, run: Callable[[KernelCosts], object]) -> KernelCosts:
    """What the kernels cost that `run` starts."""
    costs = KernelCosts(options.rate, options.bandwidth)
    with flash_attention(costs), costs:
        run(costs)
    return costs


def published_pass(model: Phi3VForCausalLM, one: Encoded, crops: int) -> None:
    """Forward and backward of one sample the published way."""
    size = full_config().crop_size
    ids = torch.from_numpy(one.input_ids)
    where = (ids < 0).nonzero()[:, 0].to(META)
    pixels = torch.empty(crops + 1, 3, size, size, device=META)
    hidden = published_states(model, ids[None].to(META), pixels, GRIDS[crops], where)
    logits: Tensor = model.lm_head(hidden[0, :-1]).float()
    F.cross_entropy(logits, torch.from_numpy(one.labels).to(META)[1:]).backward()


def published_costs(method: str, chosen: Sequence[Encoded], options: argparse.Namespace) -> KernelCosts:
    """The kernels of all samples the published way."""
    model = bare_model(recomputed=False)
    model.set_attn_implementation("sdpa")
    if method == "lora":
        with META:
            add_lora(model, **config_of().tune.lora.model_dump())[0].bfloat16()

    def run(costs: KernelCosts) -> None:
        for one in chosen:
            published_pass(model, one, options.crops)

    return costs_of(options, run)


def own_costs(method: str, recomputed: bool, by_one: bool, batch: Batch, options: argparse.Namespace) -> Any:
    """The kernels of a pack, and its operations as the utilisation counts them.

    by_one: with fused kernels.
    """
    model = bare_model(recomputed)
    with META:
        tuned = prepare(model, config_of(model={"precision": "bf16"}, tune={"method": method})).bfloat16()

    def run(costs: KernelCosts) -> None:
        if by_one:
            use_kernels(model, fused(costs))
        tuned(**arguments_of(batch, META)).loss.backward()

    sizes = part_sizes(tuned)
    trained, total = ({part: getattr(size, of) for part, size in sizes.items()} for of in ("trained", "total"))
    return costs_of(options, run), Arithmetic.of(trained, total, full_config()).of_packs([batch])


def row_of(start: Sequence[str], costs: KernelCosts, pictures: int, share: str) -> tuple[str, ...]:
    """A row of the table."""
    total = costs.total_s
    largest = ", ".join(f"{name} {spent / total:.0%}" for name, spent in costs.seconds.most_common(4))
    return (*start, f"{1e3 * total:.0f}", f"{pictures / total:.2f}", share, largest)


def measure(options: argparse.Namespace) -> list[Figure]:
    """Print the table; returns its figures."""
    chosen = samples(full_config(), options.crops, options.tokens)
    batch = pack_of(config_of(), chosen)
    pictures = len(batch.grids)
    rows, figures = [], []
    for method in ("full", "lora"):
        costs = published_costs(method, chosen, options)
        theirs = pictures / costs.total_s
        rows.append(row_of((method, "published", "no"), costs, pictures, ""))
        for recomputed, by_one in itertools.product((True, False), (False, True)):
            costs, operations = own_costs(method, recomputed, by_one, batch, options)
            ours, limit = pictures / costs.total_s, pictures * options.rate / operations
            way = "fused" if by_one else "plain"
            rows.append(row_of((method, way, "yes" if recomputed else "no"), costs, pictures, f"{ours / limit:.1%}"))
            figure = Figure(
                name=f"{method}, {way} kernels, {'recomputed' if recomputed else 'kept'} activations, "
                f"{options.tokens:,} tokens, {options.crops} crops: the most a GPU could reach",
                value=ours,
                unit="pictures/s",
                baseline=counted("the published way's most", ours, theirs),
                limit=counted("all operations at the rate assumed", ours, limit),
            )
            figures.append(figure.asking(f"{ASKED:.0%} of the limit", ours >= ASKED * limit) if by_one else figure)
    print(
        f"\nAssumed: {options.rate / 1e12:,.0f}e12 operations and {options.bandwidth / 1e12:.1f}e12 bytes a second.\n"
    )
    print_table(HEADER, rows)
    return figures


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bound",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--tokens", type=int, default=8192, help="of the pack (default: 8,192)")
    made.add_argument("--crops", type=int, choices=sorted(GRIDS), default=16)
    made.add_argument("--rate", type=float, default=700e12, help="operations a second of bf16 products")
    made.add_argument("--bandwidth", type=float, default=4.0e12, help="bytes a second of the GPU's memory")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
