"""The loss over the steps, as a picture."""

from pathlib import Path

from adg.base import artifacts


def plot_loss(metrics: Path, picture: Path) -> None:
    """Draw the losses of metrics.jsonl, a point a step, into a PNG file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = list(artifacts.JsonlRows(metrics))
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1)
    axes.set(xlabel="optimiser step", ylabel="loss on the responses", title=metrics.parent.name)
    axes.grid(alpha=0.3)
    with artifacts.written_aside(picture) as aside:
        figure.savefig(aside, format="png", dpi=150)
    pyplot.close(figure)
