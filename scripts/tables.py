"""Write Tables 1 and 2 of the paper with the scores measured here: python -m scripts.tables WORK --output DIR

Reads what scripts/reproduce_tables.sh left in WORK: reports of evaluate.py (table1/NAME/evaluation.json, table2/…)
and training configurations (NAME/config.yaml). Writes table1.md and table2.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from evaluation.metrics import SSIM_NOTE
from evaluation.reports import create_folder, with_interval
from utils.command_line import run_command
from utils.errors import FileError
from utils.files import write_atomically

# Rows of each table: name of the run, label, and the paper's scores (HDTF, self-driven): SSIM, PSNR, LPIPS and, in
# Table 1, LSE-D and LSE-C.
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
METRICS = {"ssim": ("SSIM ↑", 4), "psnr": ("PSNR ↑", 2), "lpips": ("LPIPS ↓", 4)}
HEADS = {
    "table1": [*(label for label, _ in METRICS.values()), "LSE-D ↓", "LSE-C ↑"],
    "table2": [label for label, _ in METRICS.values()],
}


RENAMED_KEYS = {"num_people": "num_speakers", "people": "speakers"}  # of reports by earlier versions of evaluate.py


def training_samples(run: Path) -> str:
    """How many samples a run was trained on, with those of the runs that it was initialised from.

    For example "5600 at S = 32, 1200 at S = 64".

    Raises:
        FileError: `run` is not the directory of a run.
    """
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
    except OSError as error:
        raise FileError(run, f"not a run directory: config.yaml cannot be read ({error.strerror})") from None
    count = f"{config['max_steps'] * config['batch_size']} at S = {config['mouth_size']}"
    before = Path(config["init_from"]).parent if config["init_from"] else None
    has_config = before is not None and (before / "config.yaml").exists()
    return f"{training_samples(before)}, {count}" if has_config else count


def read_report(path: Path) -> dict[str, Any]:
    """A report by evaluate.py --data --sync, with the current key names.

    Raises:
        FileError: the file is not such a report.
    """
    try:
        report = {RENAMED_KEYS.get(key, key): value for key, value in json.loads(path.read_text("utf-8")).items()}
        report["matched"]["lpips_vgg"], report["sync"]["generated"], report["data"], report["num_speakers"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(path, f"not a report of evaluate.py --data --sync ({error!r})") from None
    return report


def table(work: Path, name: str) -> str:
    """Table `name` ("table1" or "table2") in Markdown.

    Raises:
        FileError: there is no report for any row, or the rows were evaluated on different frames.
    """
    reports: dict[str, dict[str, Any]] = {}
    for row in ROWS[name]:
        path = work / name / row / "evaluation.json"
        if path.exists():
            reports[row] = read_report(path)
    if not reports:
        raise FileError(work / name, f"no evaluation.json in any of the folders {', '.join(ROWS[name])}")
    evaluated_on = {
        f"{report['num_frames']} frames of {report['num_clips']} clips of {report['num_speakers']} held-out "
        f"speakers, {report['compared_at']} × {report['compared_at']} pixels of "
        f"{Path(report['data']).name}/{report['split']}"
        for report in reports.values()
    }
    if len(evaluated_on) > 1:
        found = "; ".join(sorted(evaluated_on))
        raise FileError(work / name, f"expected all rows on the same frames, found {found}")
    over = " or ".join(sorted({report.get("intervals_over", "clips") for report in reports.values()}))
    heads = [
        "",
        *(f"paper: {head}" for head in HEADS[name]),
        *(f"here: {head}" for head in HEADS[name]),
        "here: LPIPS (VGG) ↓",
        "PSNR lost with shifted audio ↑",
        "bundled SyncNet's score (not LSE) ↑",
        "of the real mouths",
        "its confidence ↑",
        "of the real mouths",
        "training samples",
        "checkpoint",
    ]
    lines = [heads, ["---"] * len(heads)]
    for row, report in reports.items():
        label, paper = ROWS[name][row]
        scores = report["matched"]
        cells = [with_interval(scores[key]["mean"], scores[key]["interval"], n) for key, (_, n) in METRICS.items()]
        cells += ["missing"] * (len(HEADS[name]) - len(cells))  # LSE, which evaluate.py measures on videos only
        difference, sync = report["difference"]["psnr"], report["sync"]
        lines.append(
            [
                label,
                *(paper or ["–"] * len(HEADS[name])),
                *cells,
                with_interval(scores["lpips_vgg"]["mean"], scores["lpips_vgg"]["interval"], 4),
                with_interval(difference["mean"], difference["interval"], 2),
                *(
                    f"{sync[mouths][key]:.3f}"
                    for key in ("score", "confidence")
                    for mouths in ("generated", "real")
                ),
                "see its card" if row == "bundled" else training_samples(work / row),
                f"`{report['checkpoint']['sha256'][:12]}`",
            ]
        )
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + f"\n\nMouth box, {evaluated_on.pop()}, each driven by its matched audio; 95 % intervals over {over}. "
        f"{SSIM_NOTE}. SyncNet on {next(iter(reports.values()))['sync']['num_clips']} clips, at the size of each "
        "generator. All networks are trained with the same losses, frame by frame; the losses of Wav2Lip's authors "
        "are different. The paper's scores are for S = 256 on HDTF, after its clip stage.\n"
    )


def run(args: argparse.Namespace) -> None:
    tables = {name: table(args.work, name) for name in ROWS}
    create_folder(args.output)
    for name, text in tables.items():
        write_atomically(args.output / f"{name}.md", lambda file, text=text: file.write(text.encode()))
        print(f"{name}\n\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder of scripts/reproduce_tables.sh")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write the tables to")
    run_command(parser, run)


if __name__ == "__main__":
    main()
