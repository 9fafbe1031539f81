"""The style of all figures."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # to files only: no display is needed

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

EMBER, ADAM, OTHER = "#d1495b", "#1f77b4", "#999999"

plt.rcParams |= {
    "savefig.dpi": 150,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """Writes and closes a figure."""
    figure.savefig(path)
    plt.close(figure)
