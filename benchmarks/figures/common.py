"""What the figures of the documentation share."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
torch.set_num_threads(1)
plt.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "savefig.bbox": "tight",
        "svg.hashsalt": "gflow",
    }
)


def save(figure: Figure, name: str) -> None:
    """Write `docs/figures/NAME`, without a date, so that equal figures are equal files."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / name
    stamp = "Date" if path.suffix == ".svg" else "Software"
    figure.savefig(path, dpi=130, metadata={stamp: None})
    print(f"docs/figures/{path.name}: {path.stat().st_size / 1000:.0f} kB")


def picture(states: Tensor, values: Tensor, side: int) -> Tensor:
    """Values [n] at grid points [n, 2] as an image [side, side], first coordinate to the right."""
    image = torch.full((side, side), torch.nan, dtype=torch.float64)
    image[states[:, 1], states[:, 0]] = values.double()
    return image
