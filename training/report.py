"""The report of a training run: one HTML page with its values, curves and configuration."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from utils.errors import FileError
from utils.files import read_jsonl, write_atomically

COLUMNS = 4
FORMER_NAMES = {"val_ranked_right": "val_ranking_accuracy"}  # of values, in logs of earlier versions
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 1100px }}
td, th {{ padding: 0 1.2em 0 0; text-align: right }} td:first-child, th:first-child {{ text-align: left }}
img {{ max-width: 100% }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<table>
<tr><th>value<th>first<th>last<th>lowest<th>at step<th>highest<th>at step</tr>
{rows}
</table>
<img src="data:image/png;base64,{curves}" alt="curves of all values">
<h2>Configuration</h2>
<pre>{config}</pre>
</html>
"""


def write_report(run_dir: Path, summary: str) -> Path:
    """Write report.html, from the log and the configuration in the run directory.

    Args:
        run_dir: of a run that has logged.
        summary: text about the run, such as its data.

    Raises:
        FileError: there is no log.
        OutputError: the page cannot be written.
    """
    lines = read_log(run_dir)
    rows = []
    for name in value_names(lines):
        steps, values = series(lines, name)
        low, high = int(np.argmin(values)), int(np.argmax(values))
        numbers = (values[0], values[-1], values[low], steps[low], values[high], steps[high])
        cells = "".join(f"<td>{number:.5g}" for number in numbers)
        rows.append(f"<tr><td>{html.escape(name)}{cells}</tr>")
    image = io.BytesIO()
    draw_curves({run_dir.name: lines}).savefig(image, format="png", dpi=90)
    page = PAGE.format(
        title=html.escape(run_dir.name),
        summary=html.escape(summary),
        rows="\n".join(rows),
        curves=base64.b64encode(image.getvalue()).decode(),
        config=html.escape((run_dir / "config.yaml").read_text()),
    )
    path = run_dir / "report.html"
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def read_log(run_dir: Path) -> list[dict[str, float]]:
    """The lines of log.jsonl, former names of values replaced.

    Raises:
        FileError: there is no log, or it is empty.
    """
    lines = read_jsonl(run_dir / "log.jsonl")
    if not lines:
        raise FileError(run_dir, "no log.jsonl with values in this directory")
    return [{FORMER_NAMES.get(name, name): value for name, value in line.items()} for line in lines]


def value_names(lines: list[dict[str, float]]) -> list[str]:
    """Names of the values in a log, in the order in which they first appear."""
    return list(dict.fromkeys(name for line in lines for name in line if name != "step"))


def series(lines: list[dict[str, float]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one name in a log."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in points], [value for _, value in points]


def draw_curves(logs: dict[str, list[dict[str, float]]], names: list[str] | None = None) -> Figure:
    """One panel per value and one colour per run; values that were logged often are smoothed.

    Args:
        logs: the lines of each run, by its name.
        names: of the values, in the order of the panels; None for all.
    """
    names = names or value_names([line for lines in logs.values() for line in lines])
    columns, rows = min(COLUMNS, len(names)), -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1, title=name, xlabel="step")
        for label, lines in logs.items():
            steps, values = series(lines, name)
            width = len(values) // 20 + 1  # of the moving average
            smooth = np.convolve(values, np.ones(width) / width, "valid") if values else []
            axes.plot(steps[width - 1 :], smooth, marker="." if len(values) < 20 else None, label=label)
        if number == 0 and len(logs) > 1:
            axes.legend(fontsize="small")
    return figure
