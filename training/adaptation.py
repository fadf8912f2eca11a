"""Adaptation of a generator to one speaker, on minutes of video: batches, training, which weights are kept."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from configs.schema import FOLDER, TrainConfig, load_config
from data_processing.audio.features import FEATURE_DIMS
from data_processing.audio.framing import audio_windows
from data_processing.batches import REFERENCE_GAP, Batch, make_batch, sample_augmentation
from data_processing.clips import MIN_FRAMES as MIN_SHOT_FRAMES
from data_processing.dataset import Clip
from data_processing.face.selection import face_selector
from data_processing.media.video_reader import FPS, check_readable
from evaluation.clips import evenly_spaced, mouth_boxes
from evaluation.metrics import LPIPS, psnr
from losses.perceptual import PerceptualLoss
from models.checkpoint import LoadedModel, load_model, save_model
from models.dinet import DINet
from training.dinet_trainer import Trainer, train_step
from training.other_speech import Speech, fitting_windows, load_speech, sync_confidence
from training.steps import autocast
from training.video_clips import VideoClips, read_clips
from utils.bundled import BUNDLED_GENERATOR
from utils.device import choose_device, choose_precision
from utils.errors import CheckpointError, FileError, MediaError, OutputError, ParameterError, error_reason
from utils.files import PartialFile, output_errors
from utils.limits import DEFAULT_LIMITS, Limits
from utils.weights import weight_path

CONFIG = FOLDER / "bundled" / "adapt.yaml"
MINUTES_CPU, MINUTES_GPU = 5.0, 1.0  # default time
# Parts of the generator that are trained. On a training speaker, all parts took a fifth more time per step and had
# a higher LPIPS after as many steps.
TRAINED = ("deformation", "appearance_after", "decoder")
HELD_OUT = 0.15  # of every shot, its end, to find the best step
MIN_FRAMES = 2 * FPS  # in usable shots
REFERENCE_SETS = 2  # per batch: to encode reference frames for every sample would take a sixth of the time
TIMED_STEPS = 5  # after which the number of steps is chosen; the first one is not typical
STEP_UNIT = 25  # the number of steps is a multiple of it, so that it hardly depends on chance
VALIDATION_TIME = 1.1  # factor by which validation makes training longer
PATIENCE = 3  # validations without improvement after which training stops
FITTED_FRAMES = 160  # frames used of a video whose audio does not fit
SHARES = (1.0, 0.75, 0.5, 0.25)  # of the way from the weights of the base to the adapted ones
SYNC_KEPT = 0.95  # of the sync confidence with other speech, at least
Progress = Callable[[str, int, int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptResult:
    """An adapted generator.

    path: its file.
    num_frames: frames in the usable shots of the videos.
    steps: training steps.
    best_step: the step whose weights are in the file, mixed with those of the base; 0 if only the latter are.
    share: of the weights of the best step in this mixture.
    before, after: of the base and of the file, mean "lpips" and "psnr" of the mouth box on held-out frames, and
        the "sync" confidence with speech of another voice.
    """

    path: Path
    num_frames: int
    steps: int
    best_step: int
    share: float
    before: dict[str, float]
    after: dict[str, float]

    def summary(self) -> str:
        """One line about the result."""
        training = f"{self.path}: {self.steps} steps on {self.num_frames / FPS:.0f} s of video"
        if not self.best_step:
            return (
                f"{training} found nothing that draws held-out frames better and follows other speech as well as "
                "the generator as it was, which this file is"
            )
        before, after = self.before, self.after
        return (
            f"{training}, the best at {self.best_step}, {self.share:.0%} of its change kept; "
            f"held-out frames: LPIPS {before['lpips']:.4f} -> {after['lpips']:.4f}, "
            f"PSNR {before['psnr']:.2f} -> {after['psnr']:.2f} dB; "
            f"sync confidence with other speech {before['sync']:.3f} -> {after['sync']:.3f}"
        )


def adapt(
    videos: Sequence[str | Path],
    output: str | Path,
    *,
    checkpoint: str | Path = BUNDLED_GENERATOR,
    minutes: float | None = None,
    device: str = "auto",
    landmarks: str = "dlib",
    face: str = "largest",
    limits: Limits = DEFAULT_LIMITS,
    config: TrainConfig | None = None,
    origin: dict[str, Any] | None = None,
    progress: Progress = lambda stage, done, expected: None,
) -> AdaptResult:
    """Fine-tune a generator on videos of one speaker, and save the weights that are best on held-out frames.

    Only the deformation and the decoder are trained (TRAINED). What is saved is the mixture of old and new weights
    (SHARES) with the lowest LPIPS on held-out frames among those whose lips follow speech of another voice: the
    confidence of the bundled SyncNet is at least SYNC_KEPT of that before.

    If the audio of a video does not fit its lips (no audio track, no sync, or too short to tell), each frame gets
    the audio window of other speech with which the generator draws it best.

    The same inputs and number of steps give the same file on the same machine. The number of steps, a multiple of
    STEP_UNIT, follows from the duration of the first steps.

    Args:
        videos: of the speaker; a minute of each is read at most (`read_clips`). Their face crops are held in
            memory together: 37 MB each at S = 64, 600 MB at S = 256.
        output: the file to write.
        checkpoint: the generator to adapt, a DINet driven by audio.
        minutes: time for everything, tracking of the face included; None for the default of the device. At least
            STEP_UNIT steps are taken.
        device: auto, cpu, cuda, …
        landmarks, face, limits: as for dubbing.
        config: of the training; None for configs/bundled/adapt.yaml. `max_steps` is the largest number of steps.
        origin: what `describe_origin` returned for these files, if the caller has it.
        progress: called with the name of a stage, the units of it that are done, and the units expected.

    Raises:
        ParameterError: an option is not valid.
        CheckpointError: `checkpoint` cannot be adapted.
        MediaError: a video cannot be read or has no usable shot, or all are too short; NoFaceError: it shows no
            face.
        OutputError: `output` cannot be written.
        WeightsError: weights of the landmark detector, the audio features, VGG-19 or LPIPS are missing.
    """
    started = time.monotonic()
    videos, output, checkpoint = [Path(video) for video in videos], Path(output), Path(checkpoint)
    torch_device = choose_device(device)
    deadline = started + 60 * resolved_minutes(minutes, torch_device)
    for video in videos:
        check_readable(video)
    _check_output(output, [checkpoint, *videos])
    origin = origin or describe_origin(videos, checkpoint)
    loaded = _load_adaptable(checkpoint, torch_device)
    config = _resolved(config or load_config(CONFIG), loaded, torch_device)
    # before the face is tracked, so that missing weights show at once
    trainer, lpips = _new_trainer(loaded.model, config, torch_device), LPIPS().to(torch_device)
    speech = load_speech(loaded.audio_features)
    select_face = face_selector(face, limits)
    options = (loaded.mouth_size, loaded.audio_features, landmarks, select_face, limits, progress)
    found = [read_clips(video, *options) for video in videos]
    num_frames = sum(len(clip.frames) for part in found for clip in part.clips)
    if num_frames < MIN_FRAMES:
        reason = f"expected {MIN_FRAMES / FPS:g} s of a face or more to adapt to, found {num_frames / FPS:.1f} s"
        raise MediaError(videos[0], reason)
    shots = []
    for video, part in zip(videos, found, strict=True):
        if part.no_audio_reason:
            message = "%s: %s; adapting without its audio"
            logger.info(message, video, part.no_audio_reason, extra={"path": video})
        shots += _make_shots(loaded.model, part, speech, config)

    judge = _Judge(trainer, shots, speech, lpips)
    best_step, share, before, after = _train(trainer, shots, judge, deadline, progress)
    notes = origin | {"steps": best_step, "share": share, "held_out": {"before": before, "after": after}}
    save_model(
        output,
        loaded.model,
        audio_features=loaded.audio_features,
        mouth_size=loaded.mouth_size,
        info=loaded.info | {"adapted": notes},
    )
    return AdaptResult(output, num_frames, trainer.step, best_step, share, before, after)


def resolved_minutes(minutes: float | None, device: torch.device) -> float:
    """The time of an adaptation, by default that of the device.

    Raises:
        ParameterError: it is not a number above 0.
    """
    if minutes is None:
        return MINUTES_CPU if device.type == "cpu" else MINUTES_GPU
    if not isinstance(minutes, Real) or not 0 < minutes < math.inf:
        raise ParameterError("minutes", f"expected a number of minutes above 0, found {minutes}")
    return float(minutes)


def describe_origin(videos: Sequence[Path], checkpoint: Path) -> dict[str, Any]:
    """What a generator is adapted from: name and sha256 of the "checkpoint" and of each of the "videos".

    Raises:
        FileError: a file cannot be read.
    """

    def identity(path: Path) -> dict[str, str]:
        return {"name": path.name, "sha256": file_sha256(path)}

    return {"checkpoint": identity(checkpoint), "videos": [identity(video) for video in videos]}


def file_sha256(path: Path) -> str:
    """The sha256 of a file. Raises FileError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error_reason(error)}") from None


def _check_output(output: Path, inputs: list[Path]) -> None:
    """Raise OutputError now, not after minutes, if the file cannot be written or is one of the inputs."""
    if output.is_dir():
        raise OutputError(output, "is a folder, not a file name")
    if not output.parent.is_dir():
        raise OutputError(output, f"no such folder: {output.parent}")
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise OutputError(output, "is also an input; choose another name")
    with output_errors(output):
        PartialFile(output).discard()


def _load_adaptable(checkpoint: Path, device: torch.device) -> LoadedModel:
    loaded = load_model(checkpoint, device)
    if not isinstance(loaded.model, DINet):
        raise CheckpointError(checkpoint, "is a Wav2Lip generator; only a DINet generator can be adapted")
    if loaded.audio_features not in FEATURE_DIMS:
        reason = f"is driven by {loaded.audio_features} features; only one driven by audio can be adapted"
        raise CheckpointError(checkpoint, reason)
    return loaded


def _resolved(config: TrainConfig, loaded: LoadedModel, device: torch.device) -> TrainConfig:
    """The configuration with the properties of the generator, in a precision that is fast on the device."""
    return replace(
        config,
        mouth_size=loaded.mouth_size,
        num_references=loaded.model.config.num_references,
        audio_features=loaded.audio_features,
        precision="fp32" if choose_precision("auto", device) == "fp32" else "bf16",
    )


@dataclass(frozen=True)
class _Shot:
    """A clip and the frames of it that are used.

    windows: (T, D, 5), the audio window of each frame; zeros for frames that are not used.
    train, held_out: indices of frames.
    """

    clip: Clip
    windows: np.ndarray
    train: np.ndarray
    held_out: np.ndarray


def _make_shots(generator: DINet, found: VideoClips, speech: Speech, config: TrainConfig) -> list[_Shot]:
    """The clips of a video, with audio windows that fit the frames."""
    total = sum(len(clip.frames) for clip in found.clips)
    shots = []
    for clip in found.clips:
        used = np.arange(len(clip.frames))
        if found.no_audio_reason:
            used = evenly_spaced(len(used), max(MIN_SHOT_FRAMES, FITTED_FRAMES * len(used) // total))
            references = _references(np.random.default_rng(config.seed), used, config)
            windows = fitting_windows(generator, speech, clip, used, references, config.precision)
        else:
            windows = audio_windows(clip.features, used)
        num_train = round(len(used) * (1 - HELD_OUT))
        shots.append(_Shot(clip, windows, used[:num_train], used[num_train:]))
    return shots


def _references(rng: np.random.Generator, frames: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Random reference frames; some repeat if there are too few frames."""
    return rng.choice(frames, config.num_references, replace=len(frames) < config.num_references)


def _training_batch(shots: list[_Shot], config: TrainConfig, step: int) -> Batch:
    """The batch of one step, a pure function of seed and step.

    It has frames of one shot, in REFERENCE_SETS groups with their own reference frames and augmentation.
    """
    rng = np.random.default_rng((config.seed, step))
    lengths = np.array([len(shot.train) for shot in shots])
    shot = shots[rng.choice(len(shots), p=lengths / lengths.sum())]
    samples, windows = [], []
    for _ in range(REFERENCE_SETS):
        references = _references(rng, shot.train, config)
        distances = np.abs(shot.train[:, None] - references).min(axis=1)
        distant = shot.train[distances >= REFERENCE_GAP]
        targets = rng.choice(distant if len(distant) else shot.train, config.batch_size // REFERENCE_SETS)
        samples.append((shot.clip, targets, references, *sample_augmentation(rng)))
        windows.append(shot.windows[targets])
    return make_batch(samples)._replace(audio_window=torch.from_numpy(np.concatenate(windows)))


def _held_out_batch(shots: list[_Shot], config: TrainConfig) -> Batch:
    """Evenly spaced held-out frames, with reference frames from the training part of their shots."""
    rng = np.random.default_rng(config.seed)
    frames = [(shot, index) for shot in shots for index in shot.held_out]
    chosen = [frames[number] for number in evenly_spaced(len(frames), config.val_frames)]
    samples = [(shot.clip, index, _references(rng, shot.train, config), 1.0, 0.0, False) for shot, index in chosen]
    windows = np.stack([shot.windows[index] for shot, index in chosen])
    return make_batch(samples)._replace(audio_window=torch.from_numpy(windows))


def _new_trainer(generator: DINet, config: TrainConfig, device: torch.device) -> Trainer:
    """A trainer of the parts in TRAINED. Batch norms and dropout work as in dubbing."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    generator.eval().to(device, memory_format=layout)
    generator.requires_grad_(False)
    for name in TRAINED:
        getattr(generator, name).requires_grad_(True)
    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=tuple(config.adam_betas))
    perceptual = PerceptualLoss(weight_path("vgg19")).to(device, memory_format=layout)
    return Trainer(generator, nn.ModuleDict(), optimizer, None, perceptual, None, config, device)


class _Judge:
    """Scores a generator on held-out frames, and its sync with speech of another voice."""

    def __init__(self, trainer: Trainer, shots: list[_Shot], speech: Speech, lpips: LPIPS) -> None:
        config = trainer.config
        self.trainer, self.speech, self.lpips = trainer, speech, lpips
        self.held_out = _held_out_batch(shots, config)
        longest = max(shots, key=lambda shot: len(shot.clip.frames))
        references = _references(np.random.default_rng(config.seed), longest.train, config)
        self.driven = (longest.clip, references, config.precision)

    def images(self) -> dict[str, float]:
        """Mean "lpips" and "psnr" of the mouth boxes of held-out frames."""
        return _score(self.trainer, self.held_out, self.lpips)

    def sync(self) -> float:
        """Confidence of SyncNet that the lips follow speech of another voice."""
        return sync_confidence(self.trainer.generator, self.speech, *self.driven)


def _train(
    trainer: Trainer, shots: list[_Shot], judge: _Judge, deadline: float, progress: Progress
) -> tuple[int, float, dict[str, float], dict[str, float]]:
    """Train until the deadline, a value of time.monotonic(), and leave the best weights in the generator.

    Returns:
        The best step, the share of its change that is kept (`_mix`), and the scores before and after.
    """
    config, generator = trainer.config, trainer.generator
    started = time.monotonic()
    before = judge.images() | {"sync": judge.sync()}
    deadline -= len(SHARES) * (time.monotonic() - started)  # for `_mix`
    base = best = _trained_weights(generator)
    best_step, lowest, num_worse = 0, before["lpips"], 0
    total, timed_from = config.max_steps, 0.0
    while trainer.step < total:
        train_step(trainer, _training_batch(shots, config, trainer.step))
        if trainer.step == 1:
            timed_from = time.monotonic()
        elif trainer.step == TIMED_STEPS:
            step_s = VALIDATION_TIME * (time.monotonic() - timed_from) / (TIMED_STEPS - 1)
            affordable = TIMED_STEPS + int((deadline - time.monotonic()) / step_s)
            total = min(total, max(STEP_UNIT, affordable // STEP_UNIT * STEP_UNIT))
            trainer.config = replace(config, max_steps=total)  # the learning rate falls to 0 at the last step
        progress("adapting", trainer.step, total)
        if trainer.step % config.validate_every and trainer.step < total:
            continue
        lpips, num_worse = judge.images()["lpips"], num_worse + 1
        if lpips < lowest:
            lowest, best_step, num_worse = lpips, trainer.step, 0
            best = _trained_weights(generator)
        if num_worse == PATIENCE or time.monotonic() > deadline:
            break
    share, after = _mix(generator, base, best, before, judge, progress)
    return best_step if share else 0, share, before, after


def _mix(
    generator: DINet,
    base: dict[str, torch.Tensor],
    adapted: dict[str, torch.Tensor],
    before: dict[str, float],
    judge: _Judge,
    progress: Progress,
) -> tuple[float, dict[str, float]]:
    """Mix the weights of the base with the adapted ones, and leave the best mixture in the generator.

    It has the lowest LPIPS among those whose sync with other speech is at least SYNC_KEPT of that of the base.

    Returns:
        The share of the adapted weights and the scores; 0 and `before` if no share is better than the base.
    """

    def use(share: float) -> None:
        _set_weights(generator, {name: base[name].lerp(adapted[name], share) for name in base})

    scores = {}
    for share in SHARES:
        use(share)
        scores[share] = judge.images()
    for number, share in enumerate(sorted(SHARES, key=lambda share: scores[share]["lpips"]), 1):
        if scores[share]["lpips"] >= before["lpips"]:
            break
        use(share)
        sync = judge.sync()
        progress("checking the sync", number, len(SHARES))
        if sync >= SYNC_KEPT * before["sync"]:
            return share, scores[share] | {"sync": sync}
    use(0.0)
    return 0.0, before


def _trained_weights(generator: DINet) -> dict[str, torch.Tensor]:
    """A copy of the parameters that are trained."""
    return {name: p.detach().clone() for name, p in generator.named_parameters() if p.requires_grad}


@torch.no_grad()
def _set_weights(generator: DINet, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in generator.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


@torch.no_grad()
def _score(trainer: Trainer, batch: Batch, lpips: LPIPS) -> dict[str, float]:
    """Mean LPIPS and PSNR of the mouth boxes."""
    generator, device = trainer.generator, trainer.device
    values: dict[str, list[np.ndarray]] = {"lpips": [], "psnr": []}
    for part in zip(*(tensor.split(8) for tensor in batch[:3]), strict=True):
        target, references, windows = (tensor.to(device) for tensor in part)
        with autocast(trainer.config.precision, device):
            output = generator(generator.mask(target), references, windows).float()
        output, target = mouth_boxes(output).cpu(), mouth_boxes(target).cpu()
        values["lpips"].append(lpips(output, target))
        values["psnr"].append(psnr(output, target))
    return {name: float(np.concatenate(parts).mean()) for name, parts in values.items()}
