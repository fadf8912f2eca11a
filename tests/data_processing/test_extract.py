"""extract: other audio features of a prepared dataset, in this process and on a Dask cluster."""

import shutil

import numpy as np
import pytest
from distributed import LocalCluster

from data_processing import extract
from data_processing.audio.features import extract_features
from data_processing.media.audio_io import load_audio
from tests.support.commands import run_command_line
from utils.files import read_jsonl

pytestmark = pytest.mark.slow


def test_features_are_extracted_once_and_equal_on_a_cluster(prepared_dataset, tmp_path, capsys):
    data = shutil.copytree(prepared_dataset, tmp_path / "data")
    run_command_line(extract.main, data, "--audio-features", "phoneme", "--jobs", 1)
    assert f"2 clips have phoneme features: {data}" in capsys.readouterr().out
    made = {path: np.load(path) for path in (data / "features" / "phoneme").iterdir()}
    assert len(made) == 2
    for line in read_jsonl(data / "manifest.jsonl"):
        expected = extract_features(load_audio(data / "clips" / f"{line['id']}.mp4"), "phoneme", line["num_frames"])
        assert np.array_equal(made[data / "features" / "phoneme" / f"{line['id']}.npy"], expected)
    first, second = made
    before = first.stat().st_mtime_ns
    second.unlink()
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        flags = ("--audio-features", "phoneme", "--scheduler", cluster.scheduler_address)
        run_command_line(extract.main, data, *flags)
    assert first.stat().st_mtime_ns == before
    assert np.array_equal(np.load(second), made[second])
    assert "phoneme features: 100%" in (errors := capsys.readouterr().err) and "1/1" in errors
    run_command_line(extract.main, data, "--audio-features", "whisper", "--jobs", 1)  # as prepared
    assert not (data / "features" / "whisper").exists()


def test_errors(tmp_path, capsys):
    for flags, message in (
        (("--audio-features", "phoneme"), f"DATA: {tmp_path}: not a prepared dataset"),
        (("--audio-features", "phoneme", "--jobs", 0), "--jobs: expected 1 or more, found 0"),
    ):
        with pytest.raises(SystemExit) as caught:
            run_command_line(extract.main, tmp_path, *flags)
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")
