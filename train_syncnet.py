"""Train SyncNet, the judge of the sync loss, on mouths with their own and with wrong sound (paper, section 3.4).

    python train_syncnet.py --config configs/syncnet_64.yaml --data data/mine --run-dir runs/syncnet_64

The run directory holds config.yaml (as resolved), state.pt (to continue from, with --resume), syncnet.safetensors
(the weights that judged held-out people best, for train_dinet.py), log.jsonl and TensorBoard events.
"""

import argparse
import math
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

import processes
from configs.schema import SyncNetConfig, dump_config, load_config
from data_processing.audio_features import FEATURE_DIMS, windows
from data_processing.dataset import (
    LIP_FEATURES,
    SYNC_RADIUS,
    Clip,
    SyncBatch,
    SyncBatches,
    draw_probabilities,
    mouth_stack,
    random_looks,
)
from data_processing.errors import UserError, command_line
from data_processing.geometry import mouth_box, mouth_size_of
from data_processing.landmarks import lip_features
from models.checkpoint import SYNCNET, load_model, load_training_state, save_model, save_training_state
from models.device import choose_device
from models.syncnet import SyncNet, encode_moments, moment_scores, offset_and_confidence, shift_scores
from training import (
    RunLog,
    add_run_arguments,
    check_finite,
    describe,
    learning_rate,
    load_batches,
    load_splits,
    out_of_time,
    own_share,
    prepare_run_dir,
    progress,
)

MAX_SHIFT = 15  # frames to either side in the curve of score against shift
UNDECIDED = 0.25  # the loss of a judge that always says 0.5
TEMPERATURE = 0.05  # of the contrast: the codes' likeness lies in [0, 1]
PLATEAU_STEPS = 1000  # by now a judge that learns at all has left it


class Comparison(nn.Module):
    """Moments (B, 15, S, S), each with K sounds (B·K, D, 9) -> their scores, and the codes of both.

    The mouths, where all the work is, are encoded once for all K.
    """

    def __init__(self, syncnet: SyncNet) -> None:
        super().__init__()
        self.syncnet = syncnet

    def forward(self, mouths: torch.Tensor, sounds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        faces, codes = self.syncnet.face_encoder(mouths), self.syncnet.audio_encoder(sounds)
        repeated = faces.repeat_interleave(len(sounds) // len(mouths), dim=0)
        return self.syncnet.merge(repeated, codes), faces, codes


@dataclass
class Trainer:
    """SyncNet with its optimizer, the number of steps taken and the best held-out accuracy so far.

    parallel: SyncNet's parts, see Comparison, as a step calls them.
    """

    syncnet: SyncNet
    optimizer: torch.optim.AdamW
    config: SyncNetConfig
    device: torch.device
    parallel: nn.Module | None = None
    step: int = 0
    best: float = 0.0

    def __post_init__(self) -> None:
        self.parallel = Comparison(self.syncnet)

    def share(self) -> None:
        """Let the processes of processes.py train together from now on."""
        self.parallel = processes.parallel(self.parallel)

    @classmethod
    def create(cls, config: SyncNetConfig, device: torch.device) -> "Trainer":
        """Network and optimizer at step 0, from the seed or from `init_from`."""
        torch.manual_seed(config.seed)
        syncnet = SyncNet(FEATURE_DIMS[config.audio_features])
        if config.init_from:
            start = load_model(config.init_from, kinds=SYNCNET)
            if start.audio_features != config.audio_features:
                raise UserError(
                    f"init_from {config.init_from}: expected {config.audio_features} features, "
                    f"found {start.audio_features}"
                )
            syncnet = start.model.train()
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        syncnet.to(device, memory_format=layout)
        optimizer = torch.optim.AdamW(
            syncnet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return cls(syncnet, optimizer, config, device)

    def autocast(self):
        """bf16 autocast where the configuration asks for it."""
        return (
            torch.autocast(self.device.type, torch.bfloat16) if self.config.precision == "bf16" else nullcontext()
        )

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs; batches and learning rate follow from the step."""
        return {
            "step": self.step,
            "best": self.best,
            "syncnet": self.syncnet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.syncnet.load_state_dict(state["syncnet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]


def train_step(trainer: Trainer, batch: SyncBatch) -> dict[str, float]:
    """One step: every moment's mouths, encoded once, with their own sound and with wrong ones.

    Returns:
        loss, least squares of the scores to 1 and 0, as the sync loss reads them, right and wrong in equal weight;
        contrast, how badly the codes alone tell the own sound among the others (ln(1 + K) by chance); accuracy,
        the share of right and of wrong pairs on their side of 0.5, averaged.

    Raises:
        UserError: the loss is not finite; the clips of the batch are named.
    """
    trainer.optimizer.param_groups[0]["lr"] = learning_rate(trainer.config, trainer.step)
    mouths, sounds = batch.mouths.to(trainer.device), batch.sounds.to(trainer.device)
    size, choices = sounds.shape[:2]
    with trainer.autocast():
        scores, faces, codes = trainer.parallel(mouths, sounds.flatten(0, 1))
    scores = scores.unflatten(0, (size, choices))
    right, wrong = scores[:, 0], scores[:, 1:]
    loss = ((right - 1).square().mean() + wrong.square().mean()) / 2
    likeness = F.cosine_similarity(
        faces.float().mean(dim=(2, 3))[:, None], codes.float()[..., 0].unflatten(0, (size, choices)), dim=-1
    )
    contrast = F.cross_entropy(likeness / TEMPERATURE, torch.zeros(size, dtype=torch.long, device=trainer.device))
    right, wrong = (score.detach().mean(dim=(-3, -2, -1)) for score in (right, wrong))
    values = {
        "loss": loss.item(),
        "contrast": contrast.item(),
        "accuracy": ((right > 0.5).float().mean() + (wrong < 0.5).float().mean()).item() / 2,
    }
    values = processes.mean(values, trainer.device)
    check_finite(values, trainer.step, batch.clip_ids)
    trainer.optimizer.zero_grad(set_to_none=True)
    (loss + trainer.config.contrast_weight * contrast).backward()
    trainer.optimizer.step()
    trainer.step += 1
    return values


def warm_up_shapes(trainer: Trainer, clips: list[Clip]) -> None:
    """Teach either encoder alone to tell how the lips stand, through a linear head that is thrown away.

    Whether a mouth fits a sound is hard to learn for two encoders that know nothing of mouths: both have to be
    right before either is rewarded. Shapes from the landmarks reward each by itself, and the head they share makes
    them speak of it in the same way.
    """
    config = trainer.config
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    probabilities = draw_probabilities(clips, config.person_power)
    shapes = [lip_features(clip.landmarks) for clip in clips]
    head = nn.Linear(128, LIP_FEATURES).to(trainer.device)
    optimizer = torch.optim.AdamW([*trainer.syncnet.parameters(), *head.parameters()])

    def draw(count: int) -> list[tuple[int, int]]:
        numbers = rng.choice(len(clips), count, p=probabilities)
        return [(number, int(rng.integers(2, len(shapes[number]) - 2))) for number in numbers]

    def unexplained(codes: torch.Tensor, drawn: list[tuple[int, int]]) -> torch.Tensor:
        wanted = np.stack([shapes[number][middle] for number, middle in drawn])
        return (head(codes).float() - torch.from_numpy(wanted).to(trainer.device)).square().mean()

    bar = tqdm(range(config.shape_warmup_steps), unit="step", desc="lips")
    for step in bar:
        optimizer.param_groups[0]["lr"] = 5e-4 * 0.5 * (1 + math.cos(math.pi * step / config.shape_warmup_steps))
        seen, heard = draw(config.batch_size), draw(8 * config.batch_size)  # sounds cost next to nothing
        mouths = np.stack([mouth_stack(clips[n], middle, *random_looks(rng)) for n, middle in seen])
        audio = np.stack([windows(clips[n].features, np.array([middle]), SYNC_RADIUS)[0] for n, middle in heard])
        with trainer.autocast():
            faces = trainer.syncnet.face_encoder(torch.from_numpy(mouths).to(trainer.device)).mean(dim=(2, 3))
            sounds = trainer.syncnet.audio_encoder(torch.from_numpy(audio).to(trainer.device))[..., 0]
            losses = [unexplained(faces, seen), unexplained(sounds, heard)]
        optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()
        optimizer.step()
        bar.set_postfix(unexplained_by_picture=f"{losses[0].item():.3f}", by_sound=f"{losses[1].item():.3f}")


@dataclass(frozen=True)
class Judgement:
    """How SyncNet judges clips.

    right, wrong: (K,) scores of moments with their own sound, and with one from elsewhere in the clip or from
    another clip, alternating. curve: (2·MAX_SHIFT + 1,) mean score against the shift of the sound. offsets: for
    every clip the shift it scores best at.
    """

    right: np.ndarray
    wrong: np.ndarray
    curve: np.ndarray
    offsets: np.ndarray

    def numbers(self) -> dict[str, float]:
        """Loss and accuracy as in training; the share of moments whose own sound scores above the wrong one; the
        peak of the curve, and the share of clips whose own peak is within one frame of 0."""
        return {
            "loss": float((((self.right - 1) ** 2).mean() + (self.wrong**2).mean()) / 2),
            "accuracy": float(((self.right > 0.5).mean() + (self.wrong < 0.5).mean()) / 2),
            "ranked_right": float((self.right > self.wrong).mean()),
            "curve_peak": int(self.curve.argmax()) - MAX_SHIFT,
            "clips_in_sync": float((np.abs(self.offsets) <= 1).mean()),
        }


@torch.no_grad()
def judge(syncnet: SyncNet, clips: list[Clip], negative_gap: int, stride: int = 5) -> Judgement:
    """Score every `stride`-th moment of clips with their own sound, moved sound and other clips' sound."""
    was_training = syncnet.training
    syncnet.eval()
    rng = np.random.default_rng(0)
    rows, columns = mouth_box(mouth_size_of(clips[0].frames.shape[1]))
    far = np.abs(np.arange(-MAX_SHIFT, MAX_SHIFT + 1)) >= negative_gap
    right, wrong, shifted, offsets = [], [], [], []
    for number, clip in enumerate(tqdm(clips, desc="judging", unit="clip", leave=False, disable=None)):
        moments, codes = encode_moments(syncnet, clip.frames[:, rows, columns], stride)
        scores = shift_scores(syncnet, moments, codes, clip.features, MAX_SHIFT)
        other = clips[(number + int(rng.integers(1, max(2, len(clips))))) % len(clips)]
        foreign = moment_scores(
            syncnet, codes, other.features, rng.integers(len(other.features), size=len(moments))
        )
        moved = [
            rng.choice(column[~np.isnan(column)]) if not np.isnan(column).all() else np.nan
            for column in scores[far].T
        ]
        right.append(scores[MAX_SHIFT])
        wrong.append(np.where((np.arange(len(moments)) % 2 == 0) | np.isnan(moved), foreign, moved))
        shifted.append(scores)
        offsets.append(offset_and_confidence(scores)[0])
    syncnet.train(was_training)
    curve = np.nanmean(np.concatenate(shifted, axis=1), axis=1)
    return Judgement(np.concatenate(right), np.concatenate(wrong), curve, np.array(offsets))


def diagnose(log: list[dict[str, Any]], held_out: dict[str, float]) -> str | None:
    """What to look at if SyncNet does not learn, in words; None while all is well.

    Args:
        log: training values of the last PLATEAU_STEPS steps.
        held_out: the newest `Judgement.numbers`.
    """
    loss = float(np.mean([line["loss"] for line in log]))
    accuracy = float(np.mean([line["accuracy"] for line in log]))
    if loss > 0.96 * UNDECIDED:
        return (
            f"plateau: the loss has stood at {loss:.3f} for {PLATEAU_STEPS} steps; {UNDECIDED} is what a judge "
            "gets that cannot tell right from wrong. Look, in this order, at: the offsets of sound and picture in "
            "the data (one frame off is tolerable, five are not), the learning rate (try a third, then three times "
            "as much), the batch size (try 64), shape_warmup_steps (try 500), and whether the clips speak at all."
        )
    if held_out["curve_peak"] != 0 and accuracy > 0.7:
        return (
            f"the score is highest with the sound {held_out['curve_peak']:+d} frames off: the data is out of sync "
            "by that much as a whole. Prepare it again with offsets (data_processing.prepare)."
        )
    if accuracy - held_out["accuracy"] > 0.2:
        return (
            f"accuracy {accuracy:.2f} in training, {held_out['accuracy']:.2f} on held-out people: SyncNet learns "
            "these people by heart. More people help most, then a higher weight_decay and fewer steps."
        )
    return None


def curve_figure(judgement: Judgement) -> Figure:
    """Mean score against the shift of the sound, and the histogram of right and wrong scores."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.arange(-MAX_SHIFT, MAX_SHIFT + 1), judgement.curve, marker=".")
    left.axvline(0, color="0.8", zorder=0)
    left.set(xlabel="sound moved by … frames", ylabel="mean score", title="held-out people: should peak at 0")
    bins = np.linspace(-0.25, 1.25, 41)
    for scores, name in ((judgement.right, "right sound"), (judgement.wrong, "wrong sound")):
        right.hist(np.clip(scores, bins[0], bins[-1]), bins, alpha=0.6, label=name)
    right.set(xlabel="score", ylabel="moments")
    right.legend()
    return figure


def release(trainer: Trainer, path: Path, info: dict[str, Any]) -> None:
    """Save SyncNet for train_dinet.py, with what has to be known of its training."""
    config = trainer.config
    notes = {"steps": trainer.step, "batch_size": config.batch_size, "seed": config.seed, **info}
    save_model(
        path, trainer.syncnet, audio_features=config.audio_features, mouth_size=config.mouth_size, info=notes
    )


def train(
    config: SyncNetConfig, data: Path, run_dir: Path, device: torch.device, max_minutes: float | None
) -> None:
    """Train until `max_steps` or the time is over; continue where state.pt in `run_dir` stands, if it is there."""
    started = time.monotonic()
    share = own_share(config.batch_size)
    trainer = Trainer.create(config, device)
    resumed = (run_dir / "state.pt").exists()
    if resumed:
        trainer.load_state(load_training_state(run_dir / "state.pt"))
        print(f"resumed at step {trainer.step}")
    with processes.first_process_first():
        clips, val_clips = load_splits(data, config)
    print(f"train: {describe(clips)}; validation: {describe(val_clips)}")
    batches = SyncBatches(
        clips,
        config.batch_size,
        config.max_steps,
        config.seed,
        config.wrong_sounds,
        config.negative_gap,
        config.person_power,
    )
    if not resumed and not config.init_from:
        first = batches[0]  # all of it, so that the processes start alike
        trainer.syncnet.calibrate(first.mouths.to(device), first.sounds[:, 0].to(device))
    if not resumed and config.shape_warmup_steps and not config.init_from:  # which has learned them already
        warm_up_shapes(trainer, clips)
    trainer.share()
    batches.share = share
    writes = processes.rank() == 0
    if writes and trainer.step == 0:  # a run killed before its first save can be resumed too
        save_training_state(run_dir / "state.pt", trainer.state())
    log = RunLog(run_dir, trainer.step) if writes else None
    recent: deque[dict[str, float]] = deque(maxlen=PLATEAU_STEPS)
    bar = progress(load_batches(batches, trainer.step, device), config, trainer.step)
    for batch in bar:
        values = train_step(trainer, batch)
        recent.append(values)
        step = trainer.step
        last = step == config.max_steps or out_of_time(started, max_minutes, device)
        if not writes:
            if last:
                break
            continue
        if step % config.log_every == 0:
            latest = list(recent)[-config.log_every :]
            means = {name: float(np.mean([line[name] for line in latest])) for name in values}
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            log.add("train", step, {**means, "learning_rate": learning_rate(config, step)})
        if step % config.validate_every == 0 or last:
            judgement = judge(trainer.syncnet, val_clips, config.negative_gap)
            held_out = judgement.numbers()
            log.add("val", step, {f"val_{name}": value for name, value in held_out.items()})
            log.writer.add_figure("held-out people", curve_figure(judgement), step)
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in held_out.items()))
            if len(recent) == PLATEAU_STEPS and (words := diagnose(list(recent), held_out)):
                tqdm.write(words)
            if held_out["accuracy"] > trainer.best:
                trainer.best = held_out["accuracy"]
                release(trainer, run_dir / "syncnet.safetensors", {"data": describe(clips), "held_out": held_out})
        if step % config.save_every == 0 or last:
            save_training_state(run_dir / "state.pt", trainer.state())
        if last:
            break
    if not writes:
        return
    log.writer.close()
    print(f"best held-out accuracy {trainer.best:.3f}: {run_dir / 'syncnet.safetensors'}")
    if trainer.step < config.max_steps:
        print(f"time is over at step {trainer.step}; continue with the same command and --resume")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser, base="configs/base_syncnet.yaml")
    args = parser.parse_args()
    overrides = {"init_from": args.init_from, "max_steps": args.max_steps}
    config = load_config(args.config, overrides, SyncNetConfig)
    device = processes.join(choose_device(args.device))
    run_dir = args.run_dir or Path("runs") / "-".join(path.stem for path in args.config)
    print(f"# {' '.join(map(str, args.config))} on {device}\n{dump_config(config)}")
    with processes.first_process_first():
        if processes.rank() == 0:
            prepare_run_dir(run_dir, config, args.resume)
    train(config, args.data, run_dir, device, args.max_minutes)
    processes.leave()


if __name__ == "__main__":
    main()
