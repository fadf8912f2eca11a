"""Download the third-party weights into the cache folder ($DINET_CACHE or ~/.cache/dinet)."""

import argparse
import sys

from utils.command_line import run_command
from utils.errors import UserError
from utils.weights import DEFAULT, WEIGHTS, cached_path, is_cached, weight_path


def describe(name: str) -> str:
    """Name, size, licence, purpose and path of one weight, on three lines."""
    weight = WEIGHTS[name]
    size = "size unknown" if weight.size is None else f"{weight.size / 1e6:.1f} MB"
    path = cached_path(name)
    state = "" if is_cached(name) else "  (not there)"
    return f"{name}: {weight.purpose}\n    {size}, licence: {weight.licence}\n    {path}{state}"


def run(args: argparse.Namespace) -> None:
    if args.names and (args.all or args.list):
        raise UserError("--all and --list take no names")
    if args.list:
        print("\n".join(describe(name) for name in WEIGHTS))
        return

    names = args.names or (WEIGHTS if args.all else DEFAULT)
    missing = [name for name in names if not is_cached(name)]  # an unknown name stops here, before any download
    errors = []
    for name in missing:
        try:
            weight_path(name)
        except UserError as error:
            errors.append(error)
    print("\n".join(describe(name) for name in names))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        sys.exit(2)
    if not missing:
        print("all there already, nothing to do")


def main() -> None:
    """Exit code 0 when every weight asked for is there, 2 and one line for each that could not be had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--all", action="store_true", help="every weight in the table")
    parser.add_argument("--list", action="store_true", help="show the table and download nothing")
    run_command(parser, run)


if __name__ == "__main__":
    main()
