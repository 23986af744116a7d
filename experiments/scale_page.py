"""What the scale benchmark found, as a page."""

from __future__ import annotations

from dataclasses import asdict

from efcn_sparse.measure.machine import Machine
from experiments.scale import ScaleResult


def markdown(result: ScaleResult, machine: Machine) -> str:
    """The page that the command prints."""
    optimizer = "FusedOptimizer(SGD)" if result.fused else "torch.optim.SGD"
    rows = [
        ("weights in the support", f"{result.weights:,}"),
        ("numbers stored", f"{result.stored:,} ({gib(result.weight_bytes)}, fp32)"),
        ("the CNN, other parameters, index arrays", gib(result.other_bytes)),
        ("activations held for backward", gib(result.activation_bytes)),
        ("workspace for gradients", gib(result.workspace_bytes)),
        ("bound: their sum, and slack", gib(result.bound_bytes)),
        ("**peak while embedding**", f"**{gib(result.embed_peak_bytes)}**"),
        ("**peak of the steps**", f"**{gib(result.step_peak_bytes)}**"),
        ("`ru_maxrss` of the process", gib(result.max_rss_bytes)),
        ("embedding, with its own check", f"{result.seconds_embed:.1f} s"),
        ("steps (forward, backward, update)", ", ".join(f"{s:.2f} s" for s in result.seconds_steps)),
        ("losses before each step", ", ".join(f"{loss:.4f}" for loss in result.losses)),
        ("loss of the CNN", f"{result.cnn_loss:.4f}"),
    ]
    lines = [
        f"# ResNet-18 at {result.pixels} pixels as an eFCN, `Local()`, batch {result.batch}, {optimizer}",
        "",
        described(machine),
        "", "| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), "",
        "Largest error of sampled units against dense rows and columns in fp64, relative to the sum of magnitudes:", "",
        "| layer | outputs | gradients of inputs | updated rows | the update itself |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, errors in result.errors.items():
        cells = ["–" if error is None else f"{error:.1e}" for error in asdict(errors).values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    wrong = result.wrong()
    lines += ["", "All within bounds." if not wrong else "\n".join(f"**Wrong:** {line}" for line in wrong)]
    return "\n".join(lines) + "\n"


def described(machine: Machine) -> str:
    """The machine, the versions and the commit, in a line."""
    return (
        f"{machine.cpu}, torch on {machine.threads} thread(s), {machine.memory_gb} GiB, {machine.system}, "
        f"{machine.date[:10]}; torch {machine.versions['torch']}; {machine.extension}; "
        f"commit {machine.commit or 'unknown'}. Load average at the start: {machine.load_average}."
    )


def gib(number: int) -> str:
    return f"{number / 2**30:.3f} GiB"
