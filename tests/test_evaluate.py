"""Scoring and its command line on made clips."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

import evaluate
from data_processing.batches import REFERENCE_GAP
from data_processing.dataset import Clip
from data_processing.media.video_writer import VideoWriter
from evaluation import clips
from evaluation.clips import Scores, mouth_boxes, score_clips, validation_samples
from evaluation.metrics import ImageMetric, image_metrics
from models.checkpoint import LoadedModel, save_model
from models.crop_layout import crop_size
from models.dinet import DINet, DINetConfig
from models.syncnet import SyncNet

MOUTH = 32


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def judges() -> dict[str, ImageMetric]:
    return image_metrics(torch.device("cpu"))


def made_clip(name: str, person: str, num_frames: int, seed: int = 0) -> Clip:
    """Grey noise frames; column 0 of the features is t / 255, so that it can be painted exactly."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, *crop_size(MOUTH), 3), np.uint8)
    features = np.zeros((num_frames, 29), np.float32)
    features[:, 0] = np.arange(num_frames) / 255
    return Clip(name, person, frames, features, np.zeros((len(frames), 68, 2), np.float32))


# --- scoring ------------------------------------------------------------------------------------------------


def test_mouth_boxes_are_what_the_source_has_masked() -> None:
    images = noise(2, 3, *crop_size(64))
    boxes = mouth_boxes(images)
    assert torch.equal(boxes, images[:, :, 32:96, 8:72])


def test_validation_samples_are_spread_and_repeatable() -> None:
    clips = [made_clip("a", "p", 40), made_clip("b", "p", 3), made_clip("c", "q", 40)]
    samples = validation_samples(clips, 4, 5)
    assert [(clip.id, index) for clip, index, *_ in samples] == [
        *(("a", index) for index in (5, 15, 25, 35)),
        *(("b", index) for index in (0, 1, 2)),
        *(("c", index) for index in (5, 15, 25, 35)),
    ]
    for clip, index, references, *change in samples:
        assert len(references) == 5
        assert change == [1.0, 0.0, False]
        if clip.id != "b":
            assert np.abs(references - index).min() >= REFERENCE_GAP
    again, other = validation_samples(clips, 4, 5), validation_samples(clips, 4, 5, seed=1)
    references = [np.stack([sample[2] for sample in found]) for found in (samples, again, other)]
    np.testing.assert_array_equal(references[0], references[1])
    assert (references[0] != references[2]).any()
    assert (references[0][:4] != references[0][7:]).any()  # other clips, other draws


class PaintAudio(nn.Module):
    """Fills each face crop with the middle value of its audio window and keeps it."""

    mask = staticmethod(DINet.mask)

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []
        self.was_training = False

    def forward(self, source: torch.Tensor, references: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        self.was_training |= self.training
        self.heard += (audio[:, 0, 2] * 255).tolist()
        return audio[:, 0, 2].view(-1, 1, 1, 1).expand_as(source)


@pytest.mark.parametrize(("shift", "expected"), [(0, [5, 15, 25]), (12, [17, 27, 7]), (-12, [23, 3, 13])])
def test_audio_shift_moves_the_sound_only(shift: int, expected: list[int], judges: dict[str, ImageMetric]) -> None:
    clip = made_clip("a", "p", 30)
    generator = PaintAudio().train()
    scores = score_clips(generator, validation_samples([clip], 3, 2), judges, audio_shift=shift, batch_size=2)
    np.testing.assert_allclose(generator.heard, expected, atol=1e-4)
    boxes = clip.frames[[5, 15, 25], MOUTH // 2 : MOUTH * 3 // 2, MOUTH // 8 : MOUTH * 9 // 8] / 255
    painted = np.array(expected).reshape(-1, 1, 1, 1) / 255
    mean_square = ((boxes - painted) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scores.values["psnr"], -10 * np.log10(mean_square), rtol=1e-6)
    assert {name: found.shape for name, found in scores.values.items()} == dict.fromkeys(judges, (3,))
    assert generator.training
    assert not generator.was_training


def test_generators_of_another_size_are_compared_at_the_samples(judges: dict[str, ImageMetric]) -> None:
    class FirstReference(nn.Module):
        mask = staticmethod(DINet.mask)

        def forward(self, source: torch.Tensor, references: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            assert source.shape[-2:] == (26, 20)
            assert not source[:, :, 8:24, 2:18].any()
            return references[:, :3]

    clip = made_clip("a", "p", 20)
    [sample] = validation_samples([clip], 1, 2)
    scores = score_clips(FirstReference(), [sample], judges, mouth_size=16)
    small = cv2.resize(clip.frames[sample[2][0]].astype(np.float32), (20, 26), interpolation=cv2.INTER_AREA)
    drawn = cv2.resize(small[8:24, 2:18], (MOUTH, MOUTH), interpolation=cv2.INTER_CUBIC).clip(0, 255).round()
    true = clip.frames[sample[1], MOUTH // 2 : MOUTH * 3 // 2, MOUTH // 8 : MOUTH * 9 // 8]
    expected = peak_signal_noise_ratio(true, drawn, data_range=255)
    np.testing.assert_allclose(scores.values["psnr"], [expected], rtol=1e-4)


def test_scores_keep_their_names_and_means(judges: dict[str, ImageMetric]) -> None:
    clips = [made_clip("a", "p", 20), made_clip("b", "q", 20, seed=1)]
    scores = score_clips(PaintAudio(), validation_samples(clips, 2, 1), judges)
    assert scores.clip_ids == ["a", "a", "b", "b"]
    assert scores.people == ["p", "p", "q", "q"]
    assert scores.means() == {name: pytest.approx(scores.values[name].mean()) for name in judges}
    assert isinstance(scores, Scores)


def test_evaluate_compares_matched_with_shifted_sound(judges: dict[str, ImageMetric]) -> None:
    clip, generator = made_clip("a", "p", 30), PaintAudio()
    generator.config = DINetConfig(num_references=2)
    loaded = LoadedModel(generator, "whisper", MOUTH, {})
    report = clips.evaluate(loaded, [clip], 3, judges, "cpu")
    np.testing.assert_allclose(generator.heard, [5, 15, 25, 17, 27, 7, 23, 3, 13], atol=1e-4)
    samples = validation_samples([clip], 3, 2)
    means = [score_clips(generator, samples, judges, audio_shift=shift).means() for shift in (0, 12, -12)]
    for name in judges:
        matched, later, earlier = (found[name] for found in means)
        assert report["matched"][name] == {"mean": pytest.approx(matched), "interval": None}
        assert report["shifted"][name]["mean"] == pytest.approx((later + earlier) / 2)
        assert report["people"]["p"]["shifted"][name] == pytest.approx((later + earlier) / 2)
        difference = report["difference"][name]["mean"]
        assert difference == pytest.approx(matched - (later + earlier) / 2, abs=1e-6)
        assert difference != 0


def test_sync_check() -> None:
    """A generator that returns the real mouths is judged as these are."""
    torch.manual_seed(0)
    clip = made_clip("a", "p", 50)

    class Copy(PaintAudio):
        config = DINetConfig(num_references=2)

        def forward(self, masked_source, references, audio_window):
            start = round(audio_window[0, 0, 2].item() * 50)
            return torch.from_numpy(clip.frames[start : start + 15]).permute(0, 3, 1, 2) / 255

    clip.features[:, 0] = np.arange(50) / 50
    judge = LoadedModel(SyncNet(29).eval(), "whisper", 64, {})
    loaded = LoadedModel(Copy(), "phoneme", MOUTH, {})
    heard = np.random.default_rng(0).random((50, 29), np.float32)
    found = clips.sync_check(loaded, judge, [clip], [heard], torch.device("cpu"))
    assert found["num_clips"] == 1
    assert found["generated"] == pytest.approx(found["real"])
    other = clips.sync_check(loaded, judge, [clip], [clip.features], torch.device("cpu"))
    assert other["real"] != found["real"]  # it hears its own features


# --- command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = DINet(DINetConfig(audio_dim=29, num_references=1))
    save_model(path, model, audio_features="whisper", mouth_size=MOUTH, info={})
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("prepared")
    (data / "clips").mkdir()
    height, width = crop_size(MOUTH)
    lines = []
    for number, person in enumerate(("ann", "bob")):
        clip = made_clip(f"clip{number}", person, 15, seed=number)
        with VideoWriter(data / "clips" / f"{clip.id}.mp4", width, height) as writer:
            for frame in clip.frames:
                writer.write(frame)
        np.savez(data / "clips" / f"{clip.id}.npz", features=clip.features, landmarks=clip.landmarks)
        line = {
            "id": clip.id,
            "person": person,
            "split": "val",
            "num_frames": 15,
            "audio_features": "whisper",
        }
        lines.append(json.dumps(line) + "\n")
    (data / "manifest.jsonl").write_text("".join(lines))
    return data


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments), "--device", "cpu"])
    evaluate.main()


def test_command_line(
    checkpoint: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "new" / "scores"
    arguments = ("--checkpoint", checkpoint, "--data", prepared, "--frames-per-clip", 2, "--output", output)
    run(monkeypatch, *arguments)
    printed = capsys.readouterr().out
    assert [path.name for path in output.iterdir()] == ["evaluation.json"]
    report = json.loads((output / "evaluation.json").read_text())
    assert (report["num_frames"], report["num_clips"], report["num_people"]) == (4, 2, 2)
    assert report["checkpoint"]["sha256"][:12] in printed
    assert "ann" in printed and "bob" in printed
    assert report["matched"].keys() == {"psnr", "ssim", "lpips", "lpips_vgg"}
    for name in report["matched"]:
        matched, shifted = report["matched"][name], report["shifted"][name]
        assert matched["interval"][0] <= matched["mean"] <= matched["interval"][1]
        assert report["difference"][name]["mean"] == pytest.approx(matched["mean"] - shifted["mean"])
        people = [person["matched"][name] for person in report["people"].values()]
        assert matched["mean"] == pytest.approx(np.mean(people))  # as many frames of each
    assert f"{report['matched']['psnr']['mean']:.2f} [" in printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--frames-per-clip": 0}, "--frames-per-clip: expected at least 1"),
        ({"--size": MOUTH // 2}, f"--size: expected a multiple of 32, at least the checkpoint's {MOUTH}, found 16"),
        ({"--size": 80}, "--size: expected a multiple of 32"),
        ({"--checkpoint": "missing.safetensors"}, "missing.safetensors: expected a checkpoint"),
        ({"--data": "nowhere"}, "--data: expected a prepared dataset"),
        ({"--split": "train"}, "train split"),
        ({"--output": "FILE/scores"}, "--output: cannot make the folder"),
    ],
)
def test_command_line_errors(
    changed: dict[str, object],
    message: str,
    checkpoint: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    options = {"--checkpoint": checkpoint, "--data": prepared} | changed
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *(part for option in options.items() for part in option))
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
