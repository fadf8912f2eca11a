"""Download the third-party weights into the cache folder ($DINET_CACHE or ~/.cache/dinet)."""

import argparse
import sys

from utils.command_line import run_command
from utils.errors import ParameterError, WeightsError
from utils.weights import DEFAULT, WEIGHTS, cached_path, is_cached, weight_path


def describe(name: str) -> str:
    """Three lines about one weight: name and purpose; size and licence; path."""
    weight = WEIGHTS[name]
    path = cached_path(name)
    size = next(file.size for file in weight.files if file.name == path.name)
    size = "size unknown" if size is None else f"{size / 1e6:.1f} MB"
    state = "" if is_cached(name) else "  (not fetched)"
    return f"{name}: {weight.purpose}\n    {size}, licence: {weight.licence}\n    {path}{state}"


def run(args: argparse.Namespace) -> None:
    """Fetch or list weights."""
    if args.names and (args.all or args.list):
        raise ParameterError("names", "give no names together with --all or --list")
    if args.list:
        print("\n".join(describe(name) for name in WEIGHTS))
        return

    names = args.names or (WEIGHTS if args.all else DEFAULT)
    missing = [name for name in names if not is_cached(name)]  # raises for an unknown name before any download
    errors = []
    for name in missing:
        try:
            weight_path(name)
        except WeightsError as error:
            errors.append(error)
    print("\n".join(describe(name) for name in names))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        sys.exit(2)
    if not missing:
        print("all weights are in the cache; nothing to do")


def main() -> None:
    """Exit code 2, and one line for each weight that cannot be fetched."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"weights to fetch (default: {' '.join(DEFAULT)})")
    parser.add_argument("--all", action="store_true", help="fetch all weights")
    parser.add_argument("--list", action="store_true", help="list all weights and fetch none")
    run_command(parser, run)


if __name__ == "__main__":
    main()
