"""The figure of the tables in the longest runs of the second plan."""

from matplotlib.figure import Figure

from benchmarks.common.figures import ADAM, EMBER, plt
from benchmarks.study import practice_report
from benchmarks.study.comparisons import Study

COLORS = {
    "ember_adafactor": EMBER,
    "ember": "#edae49",
    "adam80": ADAM,
    "adam": "#00798c",
}


def long_runs(study: Study) -> Figure:
    """RMS of both tables, and their largest step of a row, in the longest runs."""
    found = [row for _, row in practice_report.rows(study, "length")]
    longest = max((row.settings.steps for row in found), default=0)
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for row in found:
        arm = row.settings.arm
        if row.settings.steps != longest or arm not in COLORS:
            continue
        tables = study.runs_of(row)[0]["tables"]
        for j, table in enumerate(("embed", "lm_head")):
            for i in range(2):
                axes[i, j].plot(
                    [step for step, _ in tables],
                    [measured[table][i] for _, measured in tables],
                    color=COLORS[arm],
                    label=row.title,
                )
    for axis, title in zip(axes[0], ("embedding", "head"), strict=True):
        axis.set(title=title, ylabel="RMS of the table", ylim=(0, None))
    for axis in axes[1]:
        axis.set(xlabel="step", ylabel="largest RMS of a row's update", ylim=(0, None))
        axis.locator_params(axis="x", nbins=5)
    if found:
        axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Tables in runs of {longest:,} steps")
    return figure
