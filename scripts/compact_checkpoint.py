"""Store a released model in 8 bits, half its size: python scripts/compact_checkpoint.py IN OUT"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_processing.errors import command_line
from models.checkpoint import KINDS, load_model, save_model


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="a .safetensors model of this project")
    parser.add_argument("target", type=Path, metavar="OUT")
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
