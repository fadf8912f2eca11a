"""Curves of trainings as one picture: python -m scripts.plot_runs RUN… --output curves.png

One panel for every number in the runs' log.jsonl, training values smoothed, one colour a run.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from utils.command_line import run_command
from utils.errors import UserError
from utils.files import read_jsonl

COLUMNS = 4


def run(args: argparse.Namespace) -> None:
    logs = {run.name: read_jsonl(run / "log.jsonl") for run in args.runs}
    if empty := [name for name, lines in logs.items() if not lines]:
        raise UserError(f"RUN: expected run directories with a log.jsonl, found none in {', '.join(empty)}")
    found = dict.fromkeys(name for lines in logs.values() for line in lines for name in line if name != "step")
    if missing := [name for name in args.only or () if name not in found]:
        raise UserError(f"--only: expected some of {', '.join(found)}, found {', '.join(missing)}")
    names = args.only or list(found)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.2 * min(COLUMNS, len(names)), 2.4 * rows), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, min(COLUMNS, len(names)), number + 1, title=name, xlabel="step")
        for run, lines in logs.items():
            steps = [line["step"] for line in lines if name in line]
            values = [line[name] for line in lines if name in line]
            width = len(values) // 20 + 1  # of the mean that smooths many values
            smooth = np.convolve(values, np.ones(width) / width, "valid") if values else []
            axes.plot(steps[width - 1 :], smooth, marker="." if len(values) < 20 else None, label=run)
        if number == 0 and len(logs) > 1:
            axes.legend(fontsize="small")
    try:
        figure.savefig(args.output, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {args.output}: cannot be written: {error}") from None
    print(args.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--output", type=Path, required=True, help="picture to write (.png, .svg, .pdf)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these numbers, in this order (default: all)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
