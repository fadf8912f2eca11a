"""The paper's Tables 1 and 2 beside ours: python -m scripts.tables WORK --output DIR

Reads what evaluate.py wrote for scripts/reproduce_tables.sh (WORK/table1/NAME/evaluation.json, WORK/table2/…) and
how each network was trained (WORK/NAME/config.yaml), and writes table1.md and table2.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from evaluation.reports import with_interval
from utils.command_line import run_command
from utils.errors import UserError
from utils.files import write_atomically

# The rows of each table: the name of a run, how it is called, and what the paper found (HDTF, self-driven): SSIM,
# PSNR, LPIPS and, in Table 1, LSE-D and LSE-C.
ROWS = {
    "table1": {
        "wav2lip_96": ("Wav2Lip-96", ()),
        "wav2lip_192": ("Wav2Lip-192", ()),
        "wav2lip_384": ("Wav2Lip-384", ()),
        "dinet_64": ("DINet, S = 64", ()),
        "full": ("DINet", ("0.9425", "30.01", "0.0289", "8.377", "6.842")),
        "bundled": ("DINet, S = 64, as bundled", ()),
    },
    "table2": {
        "without_deformation": ("without deformation (AdaIN)", ("0.9147", "26.17", "0.0519")),
        "without_inpainting": ("without inpainting", ("0.8691", "26.01", "0.0561")),
        "attention": ("attention for AdaAT", ("0.9153", "27.25", "0.0433")),
        "flow": ("dense flow for AdaAT", ("0.9001", "23.57", "0.0656")),
        "full": ("DINet", ("0.9425", "30.01", "0.0289")),
    },
}
MEASURES = {"ssim": ("SSIM ↑", 4), "psnr": ("PSNR ↑", 2), "lpips": ("LPIPS ↓", 4)}
HEADS = {
    "table1": [*(label for label, _ in MEASURES.values()), "LSE-D ↓", "LSE-C ↑"],
    "table2": [label for label, _ in MEASURES.values()],
}


def samples_of(run: Path) -> str:
    """How a run was trained, and before it those that it began from: "5600 samples at S = 32, 1200 at S = 64"."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
    except OSError as error:
        raise UserError(f"{run}: expected the directory of a run, found no config.yaml: {error.strerror}") from None
    count = f"{config['max_steps'] * config['batch_size']} at S = {config['mouth_size']}"
    before = Path(config["init_from"]).parent if config["init_from"] else None
    return f"{samples_of(before)}, {count}" if before and (before / "config.yaml").exists() else count


def read_report(path: Path) -> dict[str, Any]:
    """What evaluate.py wrote of a checkpoint, with --sync.

    Raises:
        UserError: it is something else.
    """
    try:
        report = json.loads(path.read_text())
        report["matched"]["lpips_vgg"], report["sync"]["generated"], report["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected what evaluate.py --data --sync writes, found {error!r}") from None
    return report


def table(work: Path, name: str) -> str:
    """One of the two tables in Markdown.

    Raises:
        UserError: no row of it has been evaluated, or the rows were not on the same images.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in ROWS[name]:
        path = work / name / row / "evaluation.json"
        if path.exists():
            rows[row] = read_report(path)
    if not rows:
        raise UserError(f"{work / name}: expected evaluations of {', '.join(ROWS[name])}, found none")
    looked_at = {
        f"{report['num_frames']} frames of {report['num_clips']} clips of {report['num_people']} held-out people, "
        f"{report['compared_at']} × {report['compared_at']} pixels of {Path(report['data']).name}/{report['split']}"
        for report in rows.values()
    }
    if len(looked_at) > 1:
        raise UserError(
            f"{work / name}: expected all rows on the same images, found {'; '.join(sorted(looked_at))}"
        )
    heads = [
        "",
        *(f"paper: {head}" for head in HEADS[name]),
        *(f"here: {head}" for head in HEADS[name]),
        "here: LPIPS (VGG) ↓",
        "PSNR lost with a wrong sound ↑",
        "bundled SyncNet's score (not LSE) ↑",
        "of the real mouths",
        "its confidence ↑",
        "of the real mouths",
        "training samples",
        "checkpoint",
    ]
    lines = [heads, ["---"] * len(heads)]
    for row, report in rows.items():
        label, paper = ROWS[name][row]
        found = report["matched"]
        cells = [with_interval(found[key]["mean"], found[key]["interval"], n) for key, (_, n) in MEASURES.items()]
        cells += ["missing"] * (len(HEADS[name]) - len(cells))  # LSE, which evaluate.py measures of videos only
        gap, sync = report["difference"]["psnr"], report["sync"]
        lines.append(
            [
                label,
                *(paper or ["–"] * len(HEADS[name])),
                *cells,
                with_interval(found["lpips_vgg"]["mean"], found["lpips_vgg"]["interval"], 4),
                with_interval(gap["mean"], gap["interval"], 2),
                *(f"{sync[who][what]:.3f}" for what in ("score", "confidence") for who in ("generated", "real")),
                "see its card" if row == "bundled" else samples_of(work / row),
                f"`{report['checkpoint']['sha256'][:12]}`",
            ]
        )
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + f"\n\nMouth box, {looked_at.pop()}, each driven by its own sound; 95 % intervals over clips. SyncNet on "
        f"{next(iter(rows.values()))['sync']['num_clips']} clips, at each generator's own size. All are trained "
        "with the same losses, frame by frame; Wav2Lip's own are others. The paper's figures are for S = 256 on "
        "HDTF, after its clip stage.\n"
    )


def run(args: argparse.Namespace) -> None:
    tables = {name: table(args.work, name) for name in ROWS}
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make the folder {args.output}: {error.strerror}") from None
    for name, text in tables.items():
        write_atomically(args.output / f"{name}.md", lambda file, text=text: file.write(text.encode()))
        print(f"{name}\n\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="what scripts/reproduce_tables.sh left")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the tables go")
    run_command(parser, run)


if __name__ == "__main__":
    main()
