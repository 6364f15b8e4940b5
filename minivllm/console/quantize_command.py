"""`minivllm quantize`: a checkpoint in, a quantised checkpoint out, with what each layer has lost on the way.

Read next: `minivllm/quantize.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from minivllm.files import check_new_folder
from minivllm.terminal import Console

if TYPE_CHECKING:
    from minivllm.model.quantization.quantize_layers import LayerResult
    from minivllm.quantize import Plan, Quantized


def _option(words: str, panel: str | None = None) -> Any:
    return typer.Option(help=words, rich_help_panel=panel)


Model = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="A folder, or a name on the hub; the shipped model.")
]
Out = Annotated[Path | None, _option("New folder for the quantised checkpoint.")]
Method = Annotated[str, _option("rtn, awq, gptq, smoothquant or fp8.")]
Bits = Annotated[int | None, _option("Of each weight: 4, where the method can; rtn and gptq also 2, 3, 8.")]
GroupSize = Annotated[
    int | None, _option("Inputs that share a scale, -1 for all; 128, or the largest that divides.")
]
Symmetric = Annotated[
    bool | None, typer.Option("--symmetric/--asymmetric", help="Whether 0 is the middle of a group's grid.")
]
ActOrder = Annotated[bool, typer.Option("--act-order", help="gptq: channels with the largest inputs first.")]
Static = Annotated[bool, typer.Option("--static-groups", help="gptq: act order, but groups are neighbours.")]
Sequential = Annotated[
    bool,
    typer.Option(
        "--true-sequential/--one-pass", help="gptq: matrices see what those before them make, quantised."
    ),
]
Damping = Annotated[float, _option("gptq: share of the mean diagonal that is added to the second moments.")]
Clipping = Annotated[str, _option("awq: clip weights where it is 'validated', 'always' or 'never'.")]
Duo = Annotated[bool, typer.Option("--duo-scaling", help="awq: scales look at weights, too.")]
Smoothing = Annotated[float, _option("smoothquant: how much of the inputs' range moves into weights.")]
Source = Annotated[str, _option("'builtin', a .jsonl file with a \"text\" a line, or a text file.", "Texts")]
Count = Annotated[int, _option("Samples to calibrate with.", "Texts")]
SeqLen = Annotated[int, _option("Most tokens of a sample.", "Texts")]
HeldOut = Annotated[Path | None, _option("Texts to judge by; else built in, or left of FILE.", "Texts")]
Tokenizer = Annotated[str | None, _option("Of another model, for one that has none.", "Texts")]
Seed = Annotated[int, _option("Which samples are drawn.", "Texts")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]


def quantize(
    model: Model = None,
    method: Method = "awq",
    out: Out = None,
    bits: Bits = None,
    group_size: GroupSize = None,
    symmetric: Symmetric = None,
    act_order: ActOrder = False,
    static_groups: Static = False,
    true_sequential: Sequential = True,
    damping: Damping = 0.01,
    clipping: Clipping = "validated",
    duo_scaling: Duo = False,
    smoothing: Smoothing = 0.5,
    calibration: Source = "builtin",
    samples: Count = 128,
    seq_len: SeqLen = 512,
    held_out: HeldOut = None,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> None:
    """Write a checkpoint with small numbers for weights, found by AWQ, GPTQ, SmoothQuant or rounding."""
    from minivllm.model.tiny import MODEL_PATH
    from minivllm.quantize import Calibration, plan_quantization
    from minivllm.quantize import quantize as carry_out

    console = Console()
    if out is None and not dry_run:
        raise ValueError("out is missing: name a new folder with --out")
    place = None if out is None else check_new_folder(out, "out")
    plan = plan_quantization(
        MODEL_PATH if model is None else model,
        method,
        Calibration(calibration, samples, seq_len, held_out, tokenizer, seed),
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        act_order=act_order,
        static_groups=static_groups,
        true_sequential=true_sequential,
        damping=damping,
        clipping=clipping,
        duo_scaling=duo_scaling,
        smoothing=smoothing,
    )
    print_plan(plan, calibration, console)
    if dry_run or place is None:
        return
    with console.status("quantising layer 0", spinner="line") as status:
        done = carry_out(plan, place, layer_printer(console, status.update))
    print_result(done, console)


def print_plan(plan: Plan, source: str, console: Console) -> None:
    """What will be done, in two lines."""
    settings, grid = plan.settings, plan.settings.grid
    if settings.method == "fp8":
        numbers = "e4m3, a scale for each output"
    else:
        where = "a scale for each output" if grid.group_size == -1 else f"groups of {grid.group_size}"
        numbers = f"{grid.bits} bits, {'symmetric' if grid.symmetric else 'asymmetric'}, {where}"
    console.print(Text.assemble((settings.method, "bold"), f": {numbers}"), soft_wrap=True)
    fitted, held = (sum(map(len, part)) for part in (plan.samples.calibration, plan.samples.held_out))
    use = "calibrates with" if settings.needs_samples else "measures errors on"
    console.print(f"{use} {fitted:,} tokens of {source}, judges on {held:,} held-out ones", soft_wrap=True)


def layer_printer(console: Console, update: Callable[[str], None]) -> Callable[[LayerResult, int], None]:
    """Prints a line for each layer, and what comes next behind the spinner."""
    started = time.monotonic()

    def printed(result: LayerResult, num_layers: int) -> None:
        nonlocal started
        now = time.monotonic()
        plain, method = f"{result.rounded_error:7.2%}", f"{result.error:7.2%}"
        console.print(
            f"layer {result.index:3}   error rounded {plain}   with the method {method}   "
            f"{now - started:5.1f} s"
        )
        started = now
        if result.index + 1 < num_layers:
            update(f"quantising layer {result.index + 1} of {num_layers}")
        else:
            update("judging and writing")

    return printed


def print_result(done: Quantized, console: Console) -> None:
    verdict = done.verdict
    console.print(
        f"held-out perplexity {verdict.original_perplexity:.4f} → {verdict.perplexity:.4f}, "
        f"KL divergence {verdict.kl_divergence:.5f} nats a token",
        soft_wrap=True,
    )
    console.print(
        f"weights {done.bytes_before / 1e6:,.1f} MB → {done.bytes_after / 1e6:,.1f} MB", soft_wrap=True
    )
    console.print(Text.assemble("written to ", (str(done.folder), "bold")), soft_wrap=True)
