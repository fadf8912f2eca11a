"""Metrics against closed forms, scikit-image and a NumPy LPIPS; scoring and its command line on made clips."""

import json
import os
import pickle
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

import evaluate
from data_processing.dataset import REFERENCE_GAP, Clip
from data_processing.errors import UserError
from data_processing.geometry import crop_size
from data_processing.video import VideoWriter
from data_processing.weights import weight_path
from evaluate import (
    LPIPS,
    Scores,
    bootstrap_interval,
    mouth_boxes,
    psnr,
    read_arrays,
    score,
    ssim,
    validation_samples,
)
from models.checkpoint import LoadedModel, save_model
from models.dinet import DINet, DINetConfig
from models.syncnet import SyncNet

MOUTH = 32


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lpips_model() -> LPIPS:
    return LPIPS()


def made_clip(name: str, person: str, num_frames: int, seed: int = 0) -> Clip:
    """Grey noise frames; column 0 of the features is t / 255, so that it can be painted exactly."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, *crop_size(MOUTH), 3), np.uint8)
    features = np.zeros((num_frames, 29), np.float32)
    features[:, 0] = np.arange(num_frames) / 255
    return Clip(name, person, frames, features, np.zeros((len(frames), 68, 2), np.float32))


# --- metrics ------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_difference() -> None:
    target = torch.full((2, 3, 16, 16), 100 / 255)
    output = target + torch.tensor([10 / 255, 51 / 255]).view(2, 1, 1, 1)
    np.testing.assert_allclose(psnr(output, target), [20 * np.log10(25.5), 20 * np.log10(5)], rtol=1e-6)
    assert np.isinf(psnr(target, target)).all()


def test_metrics_see_the_image_as_saved() -> None:
    target = torch.full((1, 3, 16, 16), 100 / 255)
    assert np.isinf(psnr(target + 0.4 / 255, target))  # rounds away
    np.testing.assert_allclose(psnr(target + 0.6 / 255, target), 20 * np.log10(255), rtol=1e-6)
    assert np.isinf(psnr(torch.full_like(target, 1.3), torch.ones_like(target)))  # clipped


def test_ssim_matches_scikit_image() -> None:
    target, output = noise(2, 3, 24, 20), noise(2, 3, 24, 20, seed=1)
    output[1] = 0.7 * target[1] + 0.3 * output[1]
    levels = [np.rint(x.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8) for x in (output, target)]
    expected = [
        structural_similarity(
            a,
            b,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(*levels, strict=True)
    ]
    found = ssim(output, target)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found[1] > found[0] + 0.3
    np.testing.assert_allclose(ssim(target, target), 1, rtol=1e-12)


def numpy_lpips(layers: dict[str, Any], first: np.ndarray, second: np.ndarray) -> float:
    """LPIPS from its paper's formula, with the linear layers in the same file: images (H, W, 3) in [0, 1]."""

    def convolve(image: np.ndarray, layer: dict[str, np.ndarray], stride: int, padding: int) -> np.ndarray:
        kernel = layer["kernel"].astype(np.float64)  # (rows, columns, in, out)
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))
        return np.einsum("yxcij,ijco->yxo", patches[::stride, ::stride], kernel, optimize=True) + layer["bias"]

    def pool(image: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(0, 1))[::2, ::2].max(axis=(3, 4))

    def features(image: np.ndarray) -> list[np.ndarray]:
        x = ((2 * image - 1) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        found = []
        for number, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
            x = pool(x) if number in (1, 2) else x
            x = np.maximum(convolve(x, layers["AlexNet_0"][f"Conv_{number}"], stride, padding), 0)
            found.append(x / (np.linalg.norm(x, axis=2, keepdims=True) + 1e-10))
        return found

    total = 0.0
    for number, (a, b) in enumerate(zip(features(first), features(second), strict=True)):
        linear = layers[f"NetLinLayer_{number}"]
        while isinstance(linear, dict):
            (linear,) = linear.values()
        total += ((a - b) ** 2 @ linear.reshape(-1)).mean()
    return total


def test_lpips_matches_numpy(lpips_model: LPIPS) -> None:
    first, second = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    second[1] = 0.8 * first[1] + 0.2 * second[1]
    with weight_path("lpips_alex").open("rb") as file:
        layers = read_arrays(file)
    pairs = zip(first, second, strict=True)
    expected = [numpy_lpips(layers, *(x.permute(1, 2, 0).double().numpy() for x in pair)) for pair in pairs]
    np.testing.assert_allclose(lpips_model(first, second).numpy(), expected, rtol=1e-4)


def test_lpips_grows_with_the_noise(lpips_model: LPIPS) -> None:
    target = torch.linspace(0.2, 0.8, 64).expand(3, 3, 64, 64)
    strength = torch.tensor([0.0, 0.05, 0.2]).view(3, 1, 1, 1)
    distances = lpips_model(target + strength * (noise(1, 3, 64, 64) - 0.5), target)
    assert distances.shape == (3,)
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2]


def test_lpips_prints_and_warns_nothing(capfd: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    LPIPS()
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


class Evil:
    def __init__(self, function: Any, argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, np.load])
def test_unpickler_refuses_calls(function: Any, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    argument = f"touch {harm}" if function is os.system else f"open({str(harm)!r}, 'w')"
    content = pickle.dumps({"kernel": Evil(function, argument)})
    with pytest.raises(pickle.UnpicklingError, match="expected NumPy arrays only"):
        read_arrays(BytesIO(content))
    assert not harm.exists()


def test_unpickler_reads_arrays() -> None:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = read_arrays(BytesIO(pickle.dumps({"Conv_0": {"kernel": kernel}})))
    np.testing.assert_array_equal(found["Conv_0"]["kernel"], kernel)


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps({}), pickle.dumps({"AlexNet_0": {"Conv_0": {"kernel": np.ones(3)}}})],
)
def test_lpips_names_a_damaged_file(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(content)
    monkeypatch.setattr(evaluate, "weight_path", lambda name: path)
    with pytest.raises(UserError, match=r"alexnet\.ckpt: expected AlexNet"):
        LPIPS()


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

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []
        self.was_training = False

    def forward(self, source: torch.Tensor, references: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        self.was_training |= self.training
        self.heard += (audio[:, 0, 2] * 255).tolist()
        return audio[:, 0, 2].view(-1, 1, 1, 1).expand_as(source)


@pytest.mark.parametrize(("shift", "expected"), [(0, [5, 15, 25]), (12, [17, 27, 7]), (-12, [23, 3, 13])])
def test_audio_shift_moves_the_sound_only(shift: int, expected: list[int], lpips_model: LPIPS) -> None:
    clip = made_clip("a", "p", 30)
    generator = PaintAudio().train()
    scores = score(generator, validation_samples([clip], 3, 2), lpips_model, audio_shift=shift, batch_size=2)
    np.testing.assert_allclose(generator.heard, expected, atol=1e-4)
    boxes = clip.frames[[5, 15, 25], MOUTH // 2 : MOUTH * 3 // 2, MOUTH // 8 : MOUTH * 9 // 8] / 255
    painted = np.array(expected).reshape(-1, 1, 1, 1) / 255
    mean_square = ((boxes - painted) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scores.psnr, -10 * np.log10(mean_square), rtol=1e-6)
    assert scores.ssim.shape == scores.lpips.shape == (3,)
    assert generator.training
    assert not generator.was_training


def test_generators_of_another_size_are_compared_at_the_samples(lpips_model: LPIPS) -> None:
    class FirstReference(nn.Module):
        def forward(self, source: torch.Tensor, references: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            assert source.shape[-2:] == (26, 20)
            assert not source[:, :, 8:24, 2:18].any()
            return references[:, :3]

    clip = made_clip("a", "p", 20)
    [sample] = validation_samples([clip], 1, 2)
    scores = score(FirstReference(), [sample], lpips_model, mouth_size=16)
    small = cv2.resize(clip.frames[sample[2][0]].astype(np.float32), (20, 26), interpolation=cv2.INTER_AREA)
    drawn = cv2.resize(small[8:24, 2:18], (MOUTH, MOUTH), interpolation=cv2.INTER_CUBIC).clip(0, 255).round()
    true = clip.frames[sample[1], MOUTH // 2 : MOUTH * 3 // 2, MOUTH // 8 : MOUTH * 9 // 8]
    expected = peak_signal_noise_ratio(true, drawn, data_range=255)
    np.testing.assert_allclose(scores.psnr, [expected], rtol=1e-4)


def test_scores_keep_their_names_and_means(lpips_model: LPIPS) -> None:
    clips = [made_clip("a", "p", 20), made_clip("b", "q", 20, seed=1)]
    scores = score(PaintAudio(), validation_samples(clips, 2, 1), lpips_model)
    assert scores.clip_ids == ["a", "a", "b", "b"]
    assert scores.people == ["p", "p", "q", "q"]
    assert scores.means() == {name: pytest.approx(getattr(scores, name).mean()) for name in evaluate.METRICS}
    assert isinstance(scores, Scores)


def test_bootstrap_interval_counts_clips_not_frames() -> None:
    rng = np.random.default_rng(0)
    of_clip = rng.normal(10, 2, 100)
    names = [f"clip{number}" for number in range(100)]
    low, high = bootstrap_interval(of_clip, names)
    half_width = 1.96 * of_clip.std() / 10
    np.testing.assert_allclose([low, high], of_clip.mean() + np.array([-half_width, half_width]), atol=0.06)
    # eight equal frames of each clip tell no more than one
    assert bootstrap_interval(of_clip.repeat(8), list(np.repeat(names, 8))) == pytest.approx((low, high))
    assert bootstrap_interval(of_clip, ["one"] * 100) is None


def test_evaluate_compares_matched_with_shifted_sound(lpips_model: LPIPS) -> None:
    clip, generator = made_clip("a", "p", 30), PaintAudio()
    generator.config = DINetConfig(num_references=2)
    loaded = LoadedModel(generator, "whisper", MOUTH, {})
    report = evaluate.evaluate(loaded, [clip], 3, lpips_model, "cpu")
    np.testing.assert_allclose(generator.heard, [5, 15, 25, 17, 27, 7, 23, 3, 13], atol=1e-4)
    samples = validation_samples([clip], 3, 2)
    means = [score(generator, samples, lpips_model, audio_shift=shift).means() for shift in (0, 12, -12)]
    for name in evaluate.METRICS:
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
    found = evaluate.sync_check(LoadedModel(Copy(), "whisper", MOUTH, {}), judge, [clip], torch.device("cpu"))
    assert found["num_clips"] == 1
    assert found["generated"] == pytest.approx(found["real"])
    with pytest.raises(UserError, match="that hears whisper features, as the bundled SyncNet, found phoneme"):
        evaluate.sync_check(LoadedModel(Copy(), "phoneme", MOUTH, {}), judge, [clip], torch.device("cpu"))
    with pytest.raises(UserError, match="clips of 45 frames or more, found none"):
        evaluate.sync_check(
            LoadedModel(Copy(), "whisper", MOUTH, {}), judge, [made_clip("b", "p", 30)], torch.device("cpu")
        )


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
    for name in evaluate.METRICS:
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
