"""The commands of the README on generated videos: prepare, train two steps, evaluate, dub."""

import json
from pathlib import Path

import numpy as np
import pytest

import evaluate
import inference
import train_dinet
from data_processing import prepare
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import probe, read_frames
from tests.support.commands import run_command_line
from tests.support.media import no_face_video, speech_like_wav, talking_portrait
from utils.files import read_jsonl

RECIPE = """
mouth_size: 64
batch_size: 2
max_steps: 2
warmup_steps: 1
loss_weights: {pixel: 10.0, perceptual: 10.0, adversarial: 1.0}
adversarial_start: 1
precision: fp32
val_frames: 2
"""


@pytest.mark.slow
@pytest.mark.usefixtures("remembered_networks")
def test_prepare_train_evaluate_dub(tmp_path: Path):
    videos = tmp_path / "videos"
    (videos / "Ann").mkdir(parents=True)
    talking_portrait(videos / "Ann" / "one.mp4", num_frames=21)
    talking_portrait(videos / "bob.mp4", num_frames=20, size=(320, 240))
    talking_portrait(videos / "joe.mp4", num_frames=24, fps=30, size=(400, 300))
    no_face_video(videos / "sunset.mp4", num_frames=5)
    speakers = {"Ann/one.mp4": "Ann", "bob.mp4": "Bob", "joe.mp4": "Joe"}
    rows = "".join(f"{name}\t{person}\n" for name, person in speakers.items())
    (videos / "MANIFEST.tsv").write_text(f"file\tperson\n{rows}")

    data = tmp_path / "data"
    run_command_line(prepare.main, videos, "--output", data, "--mouth-size", 64, "--jobs", 1)
    clips = {line["person"]: line for line in read_jsonl(data / "manifest.jsonl")}
    splits = {person: (line["split"], line["num_frames"]) for person, line in clips.items()}
    assert splits == {"Ann": ("train", 21), "Bob": ("train", 20), "Joe": ("val", 20)}
    (rejected,) = read_jsonl(data / "rejected.jsonl")
    assert rejected["source"].endswith("sunset.mp4")

    recipe, run_dir = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    run_command_line(train_dinet.main, "--config", recipe, "--data", data, "--run-dir", run_dir, "--device", "cpu")
    checkpoint = run_dir / "generator.safetensors"
    validation = read_jsonl(run_dir / "log.jsonl")[-1]
    assert validation["step"] == 2

    flags = ("--checkpoint", checkpoint, "--data", data, "--frames-per-clip", 2, "--device", "cpu")
    run_command_line(evaluate.main, *flags, "--output", tmp_path / "scores")
    report = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert report["num_frames"] == 2
    assert list(report["speakers"]) == ["Joe"]
    # the same as the validation of the trainer, except that the file stores kernels in 16 bits
    for name, tolerance in (("psnr", 0.02), ("ssim", 1e-3), ("lpips", 1e-3)):
        assert report["matched"][name]["mean"] == pytest.approx(validation[f"{name}_matched"], abs=tolerance)

    speech = speech_like_wav(tmp_path / "speech.wav", 1.06, seed=5)
    source, output = videos / "bob.mp4", tmp_path / "dubbed.mp4"
    flags = ("--video", source, "--audio", speech, "--checkpoint", checkpoint, "--output", output)
    run_command_line(inference.main, *flags)
    info = probe(output)
    assert (info.width, info.height) == (320, 240)
    frames = list(read_frames(output))
    assert len(frames) == 27  # 26.5 frames of audio; the video of 20 frames is played forward, then backward
    originals = list(read_frames(source))
    expected = [*originals, *reversed(originals[13:])]
    changes = [np.abs(frame.astype(int) - old) for frame, old in zip(frames, expected, strict=True)]
    changed = np.mean(changes, axis=(0, 3))  # (H, W)
    assert changed[:80].mean() < 2.5  # forehead and eyes
    assert changed[130:160, 140:180].mean() > 10  # lips, from a generator after two steps
    given, dubbed = load_audio(speech), load_audio(output)
    length = min(len(given), len(dubbed))
    assert abs(len(given) - len(dubbed)) <= 640
    assert np.corrcoef(given[:length], dubbed[:length])[0, 1] > 0.95
