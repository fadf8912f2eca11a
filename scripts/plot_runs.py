"""Plot the logs of training runs as one figure: python -m scripts.plot_runs RUN… --output curves.png

One panel per value of the log.jsonl files and one colour per run. Training values are smoothed.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from utils.command_line import run_command
from utils.errors import FileError, OutputError, ParameterError, error_reason
from utils.files import read_jsonl

COLUMNS = 4
FORMER_NAMES = {"val_ranked_right": "val_ranking_accuracy"}  # of values, in logs of earlier versions


def read_log(run_dir: Path) -> list[dict[str, float]]:
    """The lines of log.jsonl, former names of values replaced.

    Raises:
        FileError: there is no log, or it is empty.
    """
    lines = read_jsonl(run_dir / "log.jsonl")
    if not lines:
        raise FileError(run_dir, "no log.jsonl with values in this directory")
    return [{FORMER_NAMES.get(name, name): value for name, value in line.items()} for line in lines]


def run(args: argparse.Namespace) -> None:
    logs = {run_dir.name: read_log(run_dir) for run_dir in args.runs}
    known = dict.fromkeys(name for lines in logs.values() for line in lines for name in line if name != "step")
    if unknown := [name for name in args.only or () if name not in known]:
        raise ParameterError("only", f"expected some of {', '.join(known)}, found {', '.join(unknown)}")
    names = args.only or list(known)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.2 * min(COLUMNS, len(names)), 2.4 * rows), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, min(COLUMNS, len(names)), number + 1, title=name, xlabel="step")
        for label, lines in logs.items():
            steps = [line["step"] for line in lines if name in line]
            values = [line[name] for line in lines if name in line]
            width = len(values) // 20 + 1  # of the moving average
            smooth = np.convolve(values, np.ones(width) / width, "valid") if values else []
            axes.plot(steps[width - 1 :], smooth, marker="." if len(values) < 20 else None, label=label)
        if number == 0 and len(logs) > 1:
            axes.legend(fontsize="small")
    try:
        figure.savefig(args.output, dpi=110)
    except (OSError, ValueError) as error:
        raise OutputError(args.output, f"cannot be written: {error_reason(error)}") from None
    print(args.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--output", type=Path, required=True, help="figure to write (.png, .svg, .pdf)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="plot these values, in this order (default all)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
