"""Plot the logs of training runs as one figure: python -m scripts.plot_runs RUN… --output curves.png

One panel per value of the log.jsonl files and one colour per run. Training values are smoothed.
"""

import argparse
from pathlib import Path

from training.report import draw_curves, read_log, value_names
from utils.command_line import run_command
from utils.errors import OutputError, ParameterError, error_reason


def run(args: argparse.Namespace) -> None:
    logs = {run_dir.name: read_log(run_dir) for run_dir in args.runs}
    known = value_names([line for lines in logs.values() for line in lines])
    if unknown := [name for name in args.only or () if name not in known]:
        raise ParameterError("only", f"expected some of {', '.join(known)}, found {', '.join(unknown)}")
    try:
        draw_curves(logs, args.only).savefig(args.output, dpi=110)
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
