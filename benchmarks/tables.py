"""What ``make bench`` measured, as Markdown: a table for README.md, and a page with everything."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pandas as pd

#: contenders that stand on the page alone, not in the summary
NOT_IN_SUMMARY = ("scikit-learn brute", "scikit-learn ball tree", "scikit-learn k-d tree", "stumpy mass_absolute")
NOT_IN_SUMMARY += ("batch to the layer, all its units, autograd",)


def markdown(table: pd.DataFrame) -> str:
    """A table of strings as Markdown, without the padding by which one long cell would change every line."""
    text = table.to_markdown(index=False, tablefmt="github", disable_numparse=True)
    return re.sub(r"(?<=\|) +| +(?=\|)", " ", re.sub(r"-{3,}", "---", text))


def rows(part: Mapping[str, object], corner: str, columns: dict[str, tuple[str, str | Callable]]) -> pd.DataFrame:
    """One row for each entry of ``part``; columns are a heading, a dotted name in the entries ("" for themselves), and
    a format. An entry that was left out has dashes, and the reason in its last column.
    """
    found = pd.json_normalize([entry if isinstance(entry, dict) else {"": entry} for entry in part.values()])
    table = pd.DataFrame({corner: list(part)})
    for heading, (name, form) in columns.items():
        shown = form if callable(form) else f"{{:{form}}}".format
        table[heading] = [shown(value) if value == value else "-" for value in found[name]]
    if "left_out" in found:
        table.iloc[:, -1] = found["left_out"].fillna(table.iloc[:, -1])
    return table


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
    try:
        climbed = {
            f"Activation Maximization: {name}": entry
            for name, entry in result["maximization"].items()
            if "left_out" not in entry and name not in NOT_IN_SUMMARY
        }
        mine, us = result["maximization"]["ours"]["us_per_signal_step"]["mean"], "us_per_signal_step.mean"
        columns = {
            "time": (us, "{:.1f} µs a signal and step".format),
            "ours is faster by": (us, lambda value: f"{value / mine:.1f}"),
            "peak MiB": ("peak_mib", ".0f"),
        }
        return f"{machine(result)} {_grid(result)}\n\n{markdown(rows(climbed, 'what', columns))}"
    except KeyError as error:
        raise _lacking(result, error) from error


def page(result: dict) -> str:
    """All that was measured. Raises ``ValueError`` where a part of ``result`` lacks something."""
    parts = [machine(result)]
    try:
        for name, make in PARTS.items():
            if name in result:
                made = make(result)
                parts.append(made if isinstance(made, str) else markdown(made))
    except KeyError as error:
        raise _lacking(result, error) from error
    return "\n\n".join(parts)


def _lacking(result: dict, error: KeyError) -> ValueError:
    run = f"PROFILE={result['profile']} DATASET={result['dataset']}"
    return ValueError(
        f"the benchmarks of {run} have no {error}: another version wrote them, or only a part of them; "
        f"run `make bench {run}`"
    )


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _grid(result: dict) -> str:
    g = result["grid"]
    return (
        f"The paper's grid for one data set ({g['networks']} networks, {g['signals']:,} signals, {g['steps']} steps, "
        f"stopping at {g['tolerance_g']:g} G{g.get('calibrated', '')}): **{g['seconds'] / 60:.1f} minutes**."
    )


def _maximization(result: dict) -> pd.DataFrame:
    layers = {f"Conv{i}": (f"us_per_signal_step.conv{i}", ".1f") for i in (1, 2, 3)}
    more = {"times faster": ("times_faster_than_one_at_a_time", ".1f"), "peak MiB": ("peak_mib", ".0f")}
    return rows(result["maximization"], "maximization, µs per signal and step", layers | more)


def _training(result: dict) -> str:
    t = result["training"]
    columns = {
        "ms per batch": ("ms_per_batch", ".1f"),
        "GFLOP/s": ("gflops", ".0f"),
        "of the convolution rate": ("share_of_convolution_rate", ".0%"),
    }
    parts = [
        markdown(rows(t["contenders"], f"training {t['networks']} networks", columns)),
        f"Side by side is {t['side_by_side_is_faster_by']:.2f} times as fast as one after the other. At the rate of "
        f"its convolutions alone, all else free, it could be {t['ceiling_is_faster_by']:.2f} times as fast.",
    ]
    if "account" in t:
        shares = rows(t["account"]["shares"], "training on one thread", {"share of the time": ("", ".0%")})
        free = t["account"]["products_alone_are_faster_by"]
        parts += [
            markdown(shares),
            "Convolutions and dense products are the same work in any schedule; at their rate, all else free, training "
            f"would be {free:.2f} times as fast.",
        ]
    return "\n\n".join(parts)


#: what is compared before it is timed
COMPARED = {
    "float64_200_steps_g": "engine and plain loop, float64, 200 steps",
    "float32_one_step_g": "engine and plain loop, float32, one step",
    "whole_network_one_step_g": "engine and one unit at a time on the whole network, float32, one step",
    "lucent_one_step_g": "engine and lucent, float32, one step",
}


def _agreement(result: dict) -> pd.DataFrame:
    found = {what: result["agreement"][name] for name, what in COMPARED.items() if name in result["agreement"]}
    return rows(found, "compared before timed", {"largest difference [G]": ("", ".0e")})


def _by_method(result: dict) -> str:
    a = result["agreement_by_method"]
    columns = {
        "engine and plain loop": ("engine", ".0e"),
        "plain loop and itself, units reordered": ("reordered", ".0e"),
        "one step from the same place": ("step", ".0e"),
    }
    return (
        f"Every method, both presets, all layers, {a['n_units']} units, {a['n_steps']} steps in float64: largest "
        "difference in G. With the units of its hidden layers in another order the plain loop differs from itself by "
        f"what rounding alone does.\n\n{markdown(rows(a['methods'], 'method', columns))}"
    )


def _full_runs(result: dict) -> pd.DataFrame:
    columns = {
        f"{what}, {who}": (f"{who}.{name}", form)
        for what, name, form in (("mean objective", "mean_objective", ".4f"), ("failed units", "failed", "d"))
        for who in ("engine", "autograd")
    }
    return rows(result["full_runs"], "full runs, float32", columns)


def _floors(result: dict) -> pd.DataFrame:
    columns = {
        "operations / matrix rate": ("us_by_products", ".1f"),
        "bytes / copy rate": ("us_by_copies", ".1f"),
        "ours over the first": ("ours_over_products", ".2f"),
    }
    return rows(result["floors"], "floor, µs per signal and step", columns)


def _ideas(result: dict) -> str:
    ideas = result["ideas"]
    tables = [
        rows(ideas["us_per_signal_step"], "Conv3 with one thing changed", {"µs per signal and step": ("", ".1f")}),
        rows(ideas["five_networks"], "one convolution for five networks", {"ms": ("", ".1f")}),
        rows(ideas["share_of_steps_taken"], "steps taken before nothing can move any more", {"share": ("", ".0%")}),
    ]
    return "\n\n".join(map(markdown, tables))


def _scaling(result: dict) -> pd.DataFrame:
    return rows(result["scaling"], "time of ascent grows with the number of", {"to the power": ("exponent", ".2f")})


#: parts of a file of benchmarks, in the order of the page
PARTS: dict[str, Callable[[dict], str | pd.DataFrame]] = {
    "maximization": _maximization,
    "floors": _floors,
    "grid": _grid,
    "training": _training,
    "agreement": _agreement,
    "agreement_by_method": _by_method,
    "full_runs": _full_runs,
    "ideas": _ideas,
    "scaling": _scaling,
}
