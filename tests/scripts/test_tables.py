"""scripts.tables: Tables 1 and 2 from reports of evaluate.py."""

import json
from pathlib import Path

import pytest
import yaml

from scripts import tables
from scripts.tables import read_report
from tests.support.commands import run_command_line

ROOT = Path(__file__).resolve().parents[2]


def report(psnr: float, frames: int = 4) -> dict:
    """Like a report of evaluate.py --data --sync."""
    metrics = {name: {"mean": 0.25, "interval": [0.125, 0.5]} for name in ("ssim", "lpips", "lpips_vgg")}
    metrics["psnr"] = {"mean": psnr, "interval": None}
    sync = {"score": 0.5, "confidence": 0.2, "within_one_frame": 1.0}
    return {
        "checkpoint": {"path": "model", "sha256": "0123456789abcdef"},
        "num_frames": frames,
        "num_clips": 2,
        "num_speakers": 1,
        "compared_at": 64,
        "data": "data/mine",
        "split": "val",
        "matched": metrics,
        "difference": {"psnr": {"mean": 0.5, "interval": [0.25, 0.75]}},
        "sync": {"num_clips": 1, "real": sync, "generated": sync},
    }


def test_tables_have_the_scores_of_the_paper_and_of_the_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for run, start in (("full", None), ("dinet_64", tmp_path / "full/generator.safetensors"), ("flow", None)):
        (tmp_path / run).mkdir()
        values = {"max_steps": 10, "batch_size": 8, "mouth_size": 32 if start is None else 64}
        (tmp_path / run / "config.yaml").write_text(yaml.safe_dump(values | {"init_from": start and str(start)}))
    for folder, psnr in (("table1/dinet_64", 20), ("table1/bundled", 21), ("table2/flow", 22), ("table2/full", 23)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "evaluation.json").write_text(json.dumps(report(psnr)))
    run_command_line(tables.main, tmp_path, "--output", tmp_path / "out")
    first, second = ((tmp_path / "out" / f"table{number}.md").read_text().splitlines() for number in (1, 2))
    cells = first[2].strip("| ").split(" | ")
    assert cells[0] == "DINet, S = 64"
    assert cells[6:11] == ["0.2500 [0.1250, 0.5000]", "20.00", "0.2500 [0.1250, 0.5000]", "missing", "missing"]
    assert "0.50 [0.25, 0.75]" in cells
    assert cells[-2:] == ["80 at S = 32, 80 at S = 64", "`0123456789ab`"]
    assert len({line.count("|") for line in first[:4]}) == 1
    assert "95 % intervals over clips. SSIM: Gaussian window of 11 × 11" in first[-1]  # of an earlier version
    assert second[2].startswith("| dense flow for AdaAT | 0.9001 | 23.57 | 0.0656 | 0.2500 [")
    assert second[3].startswith("| DINet | 0.9425 | 30.01 | 0.0289 | 0.2500 [")
    for content, message in (
        (json.dumps(report(22, frames=5)), "table2: expected all rows on the same frames, found 4 frames"),
        ("{}", "evaluation.json: not a report of evaluate.py --data --sync"),
    ):
        (tmp_path / "table2/flow/evaluation.json").write_text(content)
        with pytest.raises(SystemExit) as caught:
            run_command_line(tables.main, tmp_path, "--output", tmp_path / "out")
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_reports_with_former_key_names_are_read(tmp_path: Path) -> None:
    former = {("num_people" if key == "num_speakers" else key): value for key, value in report(20).items()}
    (tmp_path / "evaluation.json").write_text(json.dumps(former))
    assert read_report(tmp_path / "evaluation.json") == report(20)
    stored = sorted((ROOT / "results/small").glob("table*/*.json"))
    assert len(stored) == 10
    assert {read_report(path)["num_speakers"] for path in stored} == {20}
