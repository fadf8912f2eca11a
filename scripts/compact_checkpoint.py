"""Store the kernels of a checkpoint in 8 bits, half the file size: python -m scripts.compact_checkpoint IN OUT"""

import argparse
from pathlib import Path

from models.checkpoint import KINDS, load_model, save_model
from utils.command_line import run_command


def run(args: argparse.Namespace) -> None:
    loaded = load_model(args.source, kinds=tuple(KINDS))
    save_model(
        args.target,
        loaded.model,
        audio_features=loaded.audio_features,
        mouth_size=loaded.mouth_size,
        info=loaded.info,
        bits=8,
    )
    sizes = (path.stat().st_size / 1e6 for path in (args.source, args.target))
    print("{:.1f} -> {:.1f} MB".format(*sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="a .safetensors checkpoint of this project")
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write")
    run_command(parser, run)


if __name__ == "__main__":
    main()
