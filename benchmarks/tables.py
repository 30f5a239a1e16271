"""What ``make bench`` measured, as Markdown: a table for README.md, and a page with everything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pandas as pd

#: contenders that stand on the page alone, not in the summary
NOT_IN_SUMMARY = (
    "batch to the layer, all its units, autograd",
    "batch to the layer, own unit, autograd",
    "vmap of a gradient to the layer, compiled",
)


def markdown(table: pd.DataFrame) -> str:
    """A table of strings as Markdown, without the padding by which one long cell would change every line."""
    text = table.to_markdown(index=False, tablefmt="github", disable_numparse=True)
    return re.sub(r"(?<=\|) +| +(?=\|)", " ", re.sub(r"-{3,}", "---", text))


def rows(part: Mapping[str, object], corner: str, columns: dict[str, str]) -> str:
    """One row for each entry of ``part``; columns are a heading and a format of what the entry, a dict, has by name.

    An entry that is no dict is called ``it``. One that was left out has dashes, and the reason in its last column.
    """
    lines = []
    for name, entry in part.items():
        values = entry if isinstance(entry, dict) else {"it": entry}
        if "left_out" in values:
            cells = [*"-" * (len(columns) - 1), values["left_out"]]
        else:
            cells = [form.format_map(values) for form in columns.values()]
        lines.append([name, *cells])
    return markdown(pd.DataFrame(lines, columns=[corner, *columns]))


def machine(result: dict) -> str:
    """On what, how often, and on which data was measured."""
    m = result["machine"]
    caveat = f" **{result['caveat']}**" if result["caveat"] else ""
    return (
        f"Measured on {m['device']}, {m['threads']} threads ({m['product_gflops']:.0f} GFLOP/s in matrix products, "
        f"{m['convolution_gflops']:.0f} in SF-HF's convolutions, {m['copy_gb_s']:.0f} GB/s), medians of "
        f"{result['rounds']} rounds, {result['dataset']}, profile {result['profile']}.{caveat}"
    )


def summary(result: dict) -> str:
    """Everybody's time, and by how much ours is faster. Raises ``ValueError`` where ``result`` lacks a part."""
    with _whole(result):
        ours = result["maximization"]["ours"]["us_per_signal_step"]["mean"]
        climbed = {
            f"Activation Maximization: {name}": entry | {"ratio": entry["us_per_signal_step"]["mean"] / ours}
            for name, entry in result["maximization"].items()
            if "left_out" not in entry and name not in NOT_IN_SUMMARY
        }
        columns = {
            "time": "{us_per_signal_step[mean]:.1f} µs a signal and step",
            "ours is faster by": "{ratio:.1f}",
            "peak MiB": "{peak_mib:.0f}",
        }
        return f"{machine(result)} {_grid(result['grid'])}\n\n{rows(climbed, 'what', columns)}"


def page(result: dict) -> str:
    """All that was measured. Raises ``ValueError`` where a part of ``result`` lacks something."""
    with _whole(result):
        return "\n\n".join([machine(result), *(make(result[name]) for name, make in PARTS.items() if name in result)])


@contextmanager
def _whole(result: dict) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        run = f"PROFILE={result['profile']} DATASET={result['dataset']}"
        raise ValueError(
            f"the benchmarks of {run} have no {error}: another version wrote them, or only a part of them; "
            f"run `make bench {run}`"
        ) from error


def _grid(part: dict) -> str:
    return (
        "The paper's grid for one data set ({networks} networks, {signals:,} signals, {steps} steps, "
        "stopping at {tolerance_g:g} G): **{minutes:.1f} minutes**."
    ).format_map(part | {"minutes": part["seconds"] / 60})


def _training(part: dict) -> str:
    columns = {
        "ms per batch": "{ms_per_batch:.1f}",
        "GFLOP/s": "{gflops:.0f}",
        "of the convolution rate": "{share_of_convolution_rate:.0%}",
    }
    texts = [
        rows(part["contenders"], f"training {part['networks']} networks", columns),
        f"Side by side is {part['side_by_side_is_faster_by']:.2f} times as fast as one after the other. At the rate of "
        f"its convolutions alone, all else free, it could be {part['ceiling_is_faster_by']:.2f} times as fast.",
    ]
    return "\n\n".join(texts)


def _search(part: dict) -> str:
    head = (
        "The nearest of {segments:,} training segments ({pieces:,} different pieces, prepared in {prepare_s:.1f} s); "
        "distances differ from those of brute force by {largest_difference_g2:.0e} G² at most."
    )
    table = rows(part["ms_per_piece"], "search", {"ms a piece": "{it:.2f}"})
    return f"{head.format_map(part)}\n\n{table}"


#: with what the engine is compared before it is timed
COMPARED = {
    "float32_one_step_g": "plain loop",
    "whole_network_one_step_g": "one unit at a time on the whole network",
    "lucent_one_step_g": "lucent",
}


def _agreement(part: dict) -> str:
    found = {f"engine and {what}, float32, one step": part[name] for name, what in COMPARED.items() if name in part}
    return rows(found, "compared before timed", {"largest difference [G]": "{it:.0e}"})


def _by_method(part: dict) -> str:
    columns = {
        "engine and plain loop": "{engine:.0e}",
        "plain loop and itself, units reordered": "{reordered:.0e}",
        "one step from the same place": "{step:.0e}",
    }
    return (
        f"Every method, both presets, all layers, {part['n_units']} units, {part['n_steps']} steps in float64: largest "
        "difference in G. With the units of its hidden layers in another order the plain loop differs from itself by "
        f"what rounding alone does.\n\n{rows(part['methods'], 'method', columns)}"
    )


def _ideas(part: dict) -> str:
    tables = {
        "us_per_signal_step": ("Conv3 with one thing changed", {"µs per signal and step": "{it:.1f}"}),
        "share_of_steps_taken": ("steps taken before nothing can move any more", {"share": "{it:.0%}"}),
    }
    return "\n\n".join(rows(part[name], *table) for name, table in tables.items())


#: columns of the tables that are a whole part, and the corner above the names of their rows
MAXIMIZATION = {f"Conv{i}": f"{{us_per_signal_step[conv{i}]:.1f}}" for i in (1, 2, 3)} | {
    "times faster": "{times_faster_than_one_at_a_time:.1f}",
    "peak MiB": "{peak_mib:.0f}",
    "first call [s]": "{first_call_s:.1f}",
}
NETWORKS = {
    "ours": "{us_per_signal_step[ours]:.0f}",
    "one at a time, stopping there": "{us_per_signal_step[loop]:.0f}",
    "times faster": "{times_faster:.1f}",
    "operations / matrix rate": "{us_by_products:.1f}",
    "ours over that": "{ours_over_products:.1f}",
}
FLOORS = {
    "operations / matrix rate": "{us_by_products:.1f}",
    "bytes / copy rate": "{us_by_copies:.1f}",
    "ours over the first": "{ours_over_products:.2f}",
}
FULL_RUNS = {
    "mean objective, engine": "{engine[mean_objective]:.4f}",
    "mean objective, autograd": "{autograd[mean_objective]:.4f}",
    "failed units, engine": "{engine[failed]}",
    "failed units, autograd": "{autograd[failed]}",
}

#: parts of a file of benchmarks, in the order of the page
PARTS = {
    "maximization": lambda part: rows(part, "maximization, µs per signal and step", MAXIMIZATION),
    "networks": lambda part: rows(part, "other networks, µs per signal and step", NETWORKS),
    "floors": lambda part: rows(part, "floor, µs per signal and step", FLOORS),
    "grid": _grid,
    "search": _search,
    "training": _training,
    "agreement": _agreement,
    "agreement_by_method": _by_method,
    "full_runs": lambda part: rows(part, "full runs, float32", FULL_RUNS),
    "ideas": _ideas,
}


def devices(table: pd.DataFrame) -> str:
    """How far signals from a CPU and from CUDA agree, for each preset and layer."""
    groups = table.groupby(["preset", "layer"], sort=False)
    worst = groups[["p of movement", "p of output"]].min().min(axis=1)
    apart = (groups["flat, first"].mean() - groups["flat, second"].mean()).abs()
    parts = {
        f"{preset}, {layer}": {
            "networks": of["seed"].nunique(),
            "differ": of["differ"].mean(),
            "apart": apart[preset, layer],
            "p": worst[preset, layer],
        }
        for (preset, layer), of in groups
    }
    columns = {"networks": "{networks}", "signals that differ by over 0.01 G": "{differ:.0%}"}
    columns |= {"flat shares differ by": "{apart:.1%}", "smallest p": "{p:.2f}"}
    return (
        "Signals of the same networks (paper/dsads) climbed on a CPU and on one H200, where cuDNN computed "
        "convolutions by Fourier transforms. Single signals part where the jumps of the gradient amplify rounding; as "
        "a whole they are alike: p is of Kolmogorov-Smirnov tests, the smallest over methods and networks, of how far "
        f"signals move and what they reach.\n\n{rows(parts, 'preset and layer', columns)}"
    )
