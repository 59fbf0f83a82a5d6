#   Copyright 2026 - present The PyMC Developers
#
#   Licensed under the Apache License, Version 2.0 (the "License");
#   you may not use this file except in compliance with the License.
#   You may obtain a copy of the License at
#
#       http://www.apache.org/licenses/LICENSE-2.0
#
#   Unless required by applicable law or agreed to in writing, software
#   distributed under the License is distributed on an "AS IS" BASIS,
#   WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
#   See the License for the specific language governing permissions and
#   limitations under the License.
"""Stage 5: the table that compares the fits, and the two pictures."""

import os

from pathlib import Path

import numpy as np

from matplotlib.figure import Figure
from rich.table import Table

from examples.order_book.output import console
from examples.order_book.runs import EXACT, SAMPLERS, Fit

COEFFICIENTS = ("intercept", "mid", "spread", "imbalance")
# Far apart for every kind of colour vision.
COLOURS = {
    "exact": "#009E73",
    "in-RAM": "#0072B2",
    "in-RAM again": "#56B4E9",
    "bounded-buffer": "#000000",
    "row-groups": "#E69F00",
    "pre-shuffled": "#D55E00",
    "pathfinder": "#CC79A7",
    "nuts": "#999999",
}


def read_fits(folder: Path) -> dict[str, Fit]:
    """Fits of the stage `fit`, by name."""
    paths = {name: folder / "fits" / f"{name.replace(' ', '-')}.json" for name in COLOURS}
    for name, path in paths.items():
        if name not in SAMPLERS and not path.is_file():
            raise FileNotFoundError(f"no {path}: run the stage `fit` first")
    return {name: Fit.read(path) for name, path in paths.items() if path.is_file()}


def print_tables(fits: dict[str, Fit]) -> None:
    """Print posteriors, how far they are from the exact one, speed and memory."""
    exact = fits[EXACT]
    table = Table(
        title=f"Posterior of {exact.n_rows:,} rows, sorted by time",
        caption="Of each fit: distance of its mean from the exact one, in posterior sds, and its sd "
        "as a ratio to the one that mean-field ADVI converges to; of draws, to the exact one",
    )
    table.add_column("fit")
    for coefficient in COEFFICIENTS:
        table.add_column(coefficient, justify="right")
    table.add_row("exact mean", *(f"{mean:.4f}" for mean in exact.mean))
    table.add_row("exact sd", *(f"{sd:.4f}" for sd in exact.sd), end_section=True)
    names = [name for name in fits if name != EXACT]
    for name in names:
        cells = zip(*distances(fits[name], exact))
        table.add_row(name, *(f"{distance:+.2f} ({ratio:.2f})" for distance, ratio in cells))
    console.print(table)
    console.print(
        f"Exact posterior: {exact.steps} passes over all rows, {exact.seconds:.1f} seconds"
    )
    for name in names:
        distance, ratio = distances(fits[name], exact)
        console.print(
            f"{name}: means within {np.abs(distance).max():.2f} posterior sds, "
            f"sds {ratio.min():.2f} to {ratio.max():.2f} of "
            + ("the exact ones" if name in SAMPLERS else "mean-field's own")
        )
    if "nuts" in fits:
        console.print(
            f"NUTS: the log-density that it sampled is off by {fits['nuts'].error:.1g} nats"
        )
    table = Table(title="What it took")
    table.add_column("fit")
    for name in ("seed", "steps", "seconds", "peak memory (MB)"):
        table.add_column(name, justify="right")
    for name, one in fits.items():
        row = (name, str(one.seed), f"{one.steps:,}", f"{one.seconds:.1f}", f"{one.peak_mb:,.0f}")
        table.add_row(*row)
    console.print(table)


def distances(one: Fit, exact: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Return distances of means from the exact ones, in sds, and ratios of sds.

    Those of ADVI to mean-field's own, those of draws to the exact ones.
    """
    return (
        np.subtract(one.mean, exact.mean) / exact.sd,
        np.divide(one.sd, exact.sd if one.how in SAMPLERS else exact.mean_field_sd),
    )


def draw_posterior(fits: dict[str, Fit], path: Path) -> None:
    """Draw mean and sd of each coefficient, in a panel of its own for each.

    ArviZ's forest plot has one axis for all coefficients, on which these sds do not show. Nor would
    they beside a fit that is far off: the one through the bounded buffer is left out.
    """
    fits = {name: one for name, one in fits.items() if name != "bounded-buffer"}
    figure = Figure(figsize=(11, 4), layout="constrained")
    for j, (name, axes) in enumerate(zip(COEFFICIENTS, figure.subplots(1, len(COEFFICIENTS)))):
        for i, (label, one) in enumerate(fits.items()):
            axes.errorbar(
                i, one.mean[j], one.sd[j], fmt="o", capsize=5, color=COLOURS[label], label=label
            )
        axes.set(title=name, xlim=(-0.7, len(fits) - 0.3), xticks=[])
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.locator_params(axis="y", nbins=6)
        axes.grid(axis="y", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(fits), frameon=False)
    figure.suptitle("Posterior mean and sd (bar: one sd to each side)")
    figure.savefig(path, dpi=150)


def draw_methods(fits: dict[str, Fit], path: Path) -> None:
    """Draw the posterior of one coefficient by each method, over the exact one."""
    exact, j = fits[EXACT], COEFFICIENTS.index("spread")
    x = np.linspace(-4, 4, 400)
    figure = Figure(figsize=(9, 3), layout="constrained")
    shown = {
        "pm.fit(method='advi')": fits["pre-shuffled"],
        "pm.fit(method='pathfinder')": fits["pathfinder"],
        "subsample_model, pm.sample()": fits["nuts"],
    }
    for (label, one), axes in zip(shown.items(), figure.subplots(1, len(shown), sharey=True)):
        axes.fill_between(x, _normal(x), color=COLOURS[EXACT], alpha=0.3, lw=0, label="exact")
        if one.draws is None:
            z = (exact.mean[j] + x * exact.sd[j] - one.mean[j]) / one.sd[j]
            axes.plot(x, _normal(z) * exact.sd[j] / one.sd[j], color=COLOURS["in-RAM"])
        else:
            z = (np.array(one.draws[j]) - exact.mean[j]) / exact.sd[j]
            axes.hist(
                z, bins=30, range=(-4, 4), density=True, histtype="step", color=COLOURS["in-RAM"]
            )
        axes.set(title=label, yticks=[], xlabel="sds from the exact mean")
        axes.title.set_size("medium")
    figure.suptitle(
        f"Coefficient of spread, {exact.n_rows:,} rows (filled: exact)", fontsize="medium"
    )
    figure.savefig(path, dpi=150)


def _normal(z: np.ndarray) -> np.ndarray:
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def draw_memory(fits: list[Fit], path: Path) -> None:
    """Draw peak memory against N, and where a fit from memory runs out of it."""
    ram_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    # A larger marker below a smaller one: both show where the two fits take the same.
    for how, marker, size in (("in-RAM", "o", 11), ("row-groups", "s", 6)):
        n, peak = np.array([(one.n_rows, one.peak_mb) for one in fits if one.how == how]).T
        axes.plot(n, peak, marker, color=COLOURS[how], ms=size, label=f"{how}, measured")
        slope, base = np.polyfit(n, peak, 1)
        if how == "in-RAM" and slope > 0:
            n_out = (ram_mb - base) / slope
            line = np.geomspace(n.min(), n_out)
            label = f"{how}, {base:,.0f} MB + {1e6 * slope:.0f} bytes a row"
            axes.plot(line, base + slope * line, "--", color=COLOURS[how], label=label)
            label = "in-RAM runs out (extrapolated)"
            axes.plot(n_out, ram_mb, "X", color="black", ms=11, label=label)
            text = f"{n_out / 1e6:,.0f} M rows"
            offset = {"xytext": (-12, 8), "textcoords": "offset points", "ha": "right"}
            axes.annotate(text, (n_out, ram_mb), **offset)
            console.print(
                f"Fits from memory take {1e6 * slope:.0f} bytes a row: this machine's "
                f"{ram_mb / 1e3:.1f} GB last for about {n_out / 1e6:,.0f} M rows"
            )
    axes.axhline(ram_mb, color="grey", lw=1, label=f"memory of this machine, {ram_mb / 1e3:.1f} GB")
    axes.set(xscale="log", yscale="log", xlabel="rows N", ylabel="peak memory of the fit (MB)")
    axes.set_ylim(100, 2.5 * ram_mb)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def report(folder: Path) -> None:
    """Print the tables, save the pictures and say where they are."""
    fits = read_fits(folder)
    print_tables(fits)
    pictures = folder / "posterior.png", folder / "memory.png", folder / "methods.png"
    draw_posterior(fits, pictures[0])
    if set(SAMPLERS) <= fits.keys():
        draw_methods(fits, pictures[2])
    short = [Fit.read(path) for path in (folder / "memory").glob("*.json")]
    if not short:
        raise FileNotFoundError(f"nothing in {folder / 'memory'}: run the stage `memory` first")
    draw_memory([*fits.values(), *short], pictures[1])
    for picture in filter(Path.is_file, pictures):
        console.print(f"Picture: {picture}", soft_wrap=True)
