"""Train the network that finds what covers a mouth: python -m scripts.train_covers --data data/mine --minutes 60

Writes checkpoints/covers_64.safetensors. The training data are face crops of a prepared dataset on which covers are
drawn: hands, bars, microphones, cups, captions and shapes at random, in skin, plain colours, patterns and pieces of
other crops, that come and go or stand still in the frame through the whole shot. A third of the crops stay as they
are. Every 250 steps the weights are saved and scored on the validation split.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as dumps
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from data_processing.dataset import load_clips
from data_processing.face.crop import FaceCrop
from models.cover_net import COVER_SIZE, NUM_VIEWS, TOP, CoverNet
from models.crop_layout import crop_size
from utils.bundled import COVER_NET
from utils.command_line import run_command
from utils.files import read_jsonl, write_atomically

FINE = 3  # masks are drawn this much larger, for smooth edges
HEIGHT, WIDTH = crop_size(COVER_SIZE)
MAX_FRAMES = 40  # of a clip
BATCH_SIZE = 24
LEARNING_RATE = 2e-3
POSITIVE_WEIGHT = torch.tensor(2.0)  # of covered pixels, which are few
UNCOVERED = 0.35  # part of the crops that stay as they are
LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789    "))


@dataclass(frozen=True)
class Shot:
    """Frames of one clip. frames: (T, 13S/8, 5S/4, 3) uint8; corners: (T, 2) of the crops in the source, in crop
    pixels."""

    frames: np.ndarray
    corners: np.ndarray


def load_shots(data: Path, split: str) -> dict[str, list[Shot]]:
    """The clips of a prepared dataset by speaker."""
    lines = {line["id"]: line for line in read_jsonl(data / "manifest.jsonl")}
    shots: dict[str, list[Shot]] = {}
    for clip in load_clips(data, split, COVER_SIZE, lines[next(iter(lines))]["audio_features"]):
        with np.load(data / "clips" / f"{clip.id}.npz") as arrays:
            radii = arrays["radii"]
        rows = np.linspace(0, len(clip.frames) - 1, min(MAX_FRAMES, len(clip.frames))).astype(int)
        crops = [FaceCrop.from_landmarks(clip.landmarks[row], radii[row], COVER_SIZE) for row in rows]
        corners = np.array([[crop.left, crop.top] for crop in crops]) / np.median([one.pixel_size for one in crops])
        shots.setdefault(clip.speaker, []).append(Shot(clip.frames[rows].copy(), corners))
    return shots


class CoverMaker:
    """Makes training data. All sizes are in crop pixels at S = COVER_SIZE."""

    def __init__(self, shots: dict[str, list[Shot]], seed: int) -> None:
        self.shots, self.speakers = shots, sorted(shots)
        self.rng = np.random.default_rng(seed)

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Source and reference crops (1 + NUM_VIEWS, SIDE, SIDE, 3) uint8, and the mask (SIDE, SIDE) in [0, 1]."""
        rng = self.rng
        shot = self._shot()
        rows = rng.integers(0, len(shot.frames), 1 + NUM_VIEWS)
        crops = shot.frames[rows].astype(np.float32)
        alpha = np.zeros((HEIGHT, WIDTH), np.float32)
        if rng.random() > UNCOVERED:
            crops, alpha = self._cover(crops, shot.corners[rows])
        crops, alpha = self._move(crops, alpha)
        crops = self._light(crops)
        if rng.random() < 0.5:
            crops, alpha = crops[:, :, ::-1], alpha[:, ::-1]
        return crops[:, TOP:].clip(0, 255).astype(np.uint8), alpha[TOP:]

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """BATCH_SIZE samples: (B, 1 + NUM_VIEWS, SIDE, SIDE, 3) uint8 and (B, SIDE, SIDE) float32."""
        crops, masks = zip(*(self.sample() for _ in range(BATCH_SIZE)), strict=True)
        return np.stack(crops), np.stack(masks)

    def _shot(self) -> Shot:
        own = self.shots[self.speakers[self.rng.integers(len(self.speakers))]]
        return own[self.rng.integers(len(own))]

    def _cover(self, crops: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw one or two covers on the first crop, and on the references where they stand still or pass by."""
        rng = self.rng
        alphas = np.zeros(crops.shape[:3], np.float32)
        for _ in range(1 + (rng.random() < 0.2)):
            mask, texture = self._shape(), self._texture(crops[0])
            if rng.random() < 0.4:  # rounded: darker towards the edges
                small = cv2.resize(mask, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
                depth = cv2.GaussianBlur(small, (0, 0), rng.uniform(1.5, 7))
                texture = texture * (1 + rng.uniform(0.1, 0.6) * (depth - 0.8))[..., None]
            opacity = rng.uniform(0.6, 1) if rng.random() < 0.15 else 1.0
            shadow = rng.uniform(0, 0.5) if rng.random() < 0.4 else 0.0
            blur = rng.uniform(0.2, 1.5)  # of its edge
            kind = rng.choice(["passing", "still", "seen once"], p=[0.3, 0.55, 0.15])
            for index, corner in enumerate(corners):
                shift = corners[0] - corner if kind == "still" else rng.normal(0, 30, 2)
                if index and (kind == "passing" or (kind == "seen once" and index > 1)):
                    continue
                shift = shift if index else np.zeros(2)
                alpha = cv2.resize(_shifted(mask, FINE * shift), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
                alpha = opacity * cv2.GaussianBlur(alpha, (0, 0), blur / 2)
                colour = _shifted(texture, shift, cv2.BORDER_REPLICATE)
                dark = 1 - shadow * _shifted(cv2.GaussianBlur(alpha, (0, 0), 3), np.array([2, 3]))
                crops[index] = crops[index] * (dark * (1 - alpha))[..., None] + colour * alpha[..., None]
                alphas[index] = np.maximum(alphas[index] * (1 - alpha), alpha)
        return crops, alphas[0]

    def _shape(self) -> np.ndarray:
        """(FINE · 13S/8, FINE · 5S/4) float32, 1 inside."""
        rng = self.rng
        mask = np.zeros((FINE * HEIGHT, FINE * WIDTH), np.uint8)
        centre = FINE * np.array([rng.uniform(0, WIDTH), rng.uniform(TOP + 5, HEIGHT)])
        if rng.random() < 0.5:  # over the lips
            centre = FINE * rng.normal([WIDTH / 2, 0.65 * HEIGHT], [12, 10])
        kind = rng.choice(["hand", "blob", "bar", "microphone", "text", "ellipse", "edge"])
        if kind == "hand":
            angle, size = rng.uniform(0, 2 * np.pi), FINE * rng.uniform(5, 12)
            direction = np.array([np.cos(angle), np.sin(angle)])
            palm = centre - direction * size * rng.uniform(1, 4)
            arm = palm - direction * 200
            cv2.ellipse(mask, _point(palm), _point([size * 1.8, size * 1.5]), np.degrees(angle), 0, 360, 1, -1)
            cv2.line(mask, _point(palm), _point(arm), 1, max(1, round(size * rng.uniform(1.2, 2.6))))
            for spread in np.linspace(-1, 1, rng.integers(1, 6)) * rng.uniform(0.1, 0.6):
                turned = np.array([np.cos(angle + spread), np.sin(angle + spread)])
                start, tip = palm + turned * size, palm + turned * size * rng.uniform(2.5, 6)
                cv2.line(mask, _point(start), _point(tip), 1, max(2, round(size * rng.uniform(0.5, 1.0))))
        elif kind == "blob":
            angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            radii = FINE * rng.uniform(3, 30) * rng.uniform(0.4, 1, 12)
            corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
            mask = np.uint8(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), FINE * 2) > 0.5)
        elif kind in ("bar", "microphone"):
            angle = rng.uniform(0, np.pi) if kind == "bar" else rng.uniform(0.2, np.pi - 0.2)
            direction = np.array([np.cos(angle), np.sin(angle)])
            width = FINE * (rng.uniform(1, 4) if rng.random() < 0.5 else rng.uniform(4, 20))
            start = centre - direction * 400 * (kind == "bar") * rng.choice([0.1, 1])
            cv2.line(mask, _point(start), _point(centre + direction * 400), 1, max(1, round(width)))
            if kind == "microphone":
                head = _point(np.array([rng.uniform(1, 2), 1]) * max(width, FINE * rng.uniform(3, 14)))
                cv2.ellipse(mask, _point(centre), head, np.degrees(angle), 0, 360, 1, -1)
        elif kind == "text":
            font, scale = int(rng.integers(0, 8)), rng.uniform(0.3, 3)
            for line in range(rng.integers(1, 3)):
                text = "".join(rng.choice(LETTERS, rng.integers(2, 20)))
                position = centre + np.array([-FINE * rng.uniform(0, 60), line * 30 * scale])
                cv2.putText(mask, text, _point(position), font, scale, 1, int(rng.integers(1, 2 + 3 * scale)))
            if rng.random() < 0.25:  # on a bar
                mask[max(0, round(centre[1] - 35 * scale)) : max(1, round(centre[1] + 15 * scale))] = 1
        elif kind == "ellipse":
            axes = FINE * rng.uniform(2, 25, 2)
            cv2.ellipse(mask, _point(centre), _point(axes), rng.uniform(0, 180), 0, 360, 1, -1)
            if rng.random() < 0.3:  # a ring
                cv2.ellipse(mask, _point(centre), _point(axes * rng.uniform(0.3, 0.8)), 0, 0, 360, 0, -1)
        else:
            normal, offset = rng.normal(0, 1, 2), rng.uniform(0, 30) * FINE
            y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
            distance = (x - mask.shape[1] / 2) * normal[0] + (y - 0.65 * mask.shape[0]) * normal[1]
            mask = np.uint8(distance > offset * np.linalg.norm(normal))
        return mask.astype(np.float32)

    def _texture(self, crop: np.ndarray) -> np.ndarray:
        """(13S/8, 5S/4, 3) float32."""
        rng = self.rng
        size = (WIDTH, HEIGHT)
        kind = rng.choice(["skin", "other crop", "plain", "pattern"], p=[0.45, 0.25, 0.2, 0.1])
        if kind == "skin":
            other = crop if rng.random() < 0.6 else self._shot().frames[0].astype(np.float32)
            row, column = rng.integers(TOP, TOP + 24), rng.integers(8, WIDTH - 24)
            patch = other[row : row + 16, column : column + 16]  # of a cheek, the nose or the upper lip
            texture = np.broadcast_to(patch.mean(axis=(0, 1)), (*size[::-1], 3)).astype(np.float32)
            if rng.random() < 0.5:
                texture = cv2.resize(patch, size, interpolation=cv2.INTER_CUBIC)
            texture = texture * rng.uniform(0.75, 1.2) * rng.normal(1, 0.04, 3)
        elif kind == "other crop":
            other = self._shot()
            image = other.frames[rng.integers(len(other.frames))].astype(np.float32)
            zoom = rng.uniform(0.3, 1)
            height, width = round(HEIGHT * zoom), round(WIDTH * zoom)
            row, column = rng.integers(0, HEIGHT - height + 1), rng.integers(0, WIDTH - width + 1)
            texture = cv2.resize(
                np.rot90(image[row : row + height, column : column + width], rng.integers(4)), size
            )
        elif kind == "plain":
            colour = rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.full(3, rng.choice([5, 20, 40, 230, 250]))
            texture = np.broadcast_to(colour, (*size[::-1], 3)).astype(np.float32)
        else:
            y, x = np.mgrid[:HEIGHT, :WIDTH] / rng.uniform(1.5, 12)
            waves = np.sin(x * rng.normal(0, 1) + y * rng.normal(0, 1)) * np.sin(y * rng.normal(0, 2))
            texture = 128 + waves[..., None] * rng.uniform(-120, 120, 3)
        if rng.random() < 0.7:  # light that changes over it
            small = 1 + rng.uniform(0, 0.25) * rng.normal(0, 1, (4, 3, 1))
            texture = texture * cv2.resize(small.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)[..., None]
        if rng.random() < 0.6:
            texture = texture + rng.normal(0, rng.uniform(1, 12), (HEIGHT, WIDTH, 1))
        return texture.astype(np.float32)

    def _move(self, crops: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inexact landmarks: each crop is a little shifted, scaled and rotated."""
        moved = []
        amount = 1.5 if alpha.any() else 1.0
        for index, crop in enumerate(crops):
            matrix = cv2.getRotationMatrix2D(
                (WIDTH / 2, HEIGHT / 2), self.rng.normal(0, 1.5), 1 + self.rng.normal(0, 0.02 * amount)
            )
            matrix[:, 2] += self.rng.normal(0, amount, 2)
            moved.append(cv2.warpAffine(crop, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE))
            if index == 0:
                alpha = cv2.warpAffine(alpha, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
        return np.stack(moved), alpha

    def _light(self, crops: np.ndarray) -> np.ndarray:
        """Change colours and light of all crops, and a little of each; blur and noise."""
        rng = self.rng
        crops = crops * rng.normal(1, 0.06, 3) * rng.uniform(0.7, 1.15) + rng.normal(0, 8)
        if rng.random() < 0.08:
            crops = np.broadcast_to(crops.mean(axis=-1, keepdims=True), crops.shape)
        crops = np.stack([crop * rng.normal(1, 0.03) + rng.normal(0, 2, 3) for crop in crops])
        if rng.random() < 0.3:
            crops[0] = cv2.GaussianBlur(crops[0], (0, 0), rng.uniform(0.3, 1.2))
        elif rng.random() < 0.2:  # motion
            length = rng.integers(2, 6)
            kernel = np.ones((1, length) if rng.random() < 0.5 else (length, 1), np.float32) / length
            crops[0] = cv2.filter2D(crops[0].astype(np.float32), -1, kernel)
        return crops + rng.normal(0, rng.uniform(0, 4), crops.shape)


def _shifted(image: np.ndarray, shift: np.ndarray, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=border)


def _point(position: np.ndarray | list[float]) -> tuple[int, int]:
    return round(float(position[0])), round(float(position[1]))


class MadeBatches(IterableDataset):
    """Endless batches of `CoverMaker`, made in a process of their own."""

    def __init__(self, shots: dict[str, list[Shot]]) -> None:
        self.maker = CoverMaker(shots, seed=0)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        cv2.setNumThreads(1)
        while True:
            yield self.maker.batch()


def to_tensors(batch: tuple) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources (B, 3, SIDE, SIDE), references (B, 3 · NUM_VIEWS, SIDE, SIDE) in [0, 1], masks (B, SIDE, SIDE)."""
    crops, masks = map(torch.as_tensor, batch)
    images = crops.permute(0, 1, 4, 2, 3).float() / 255
    return images[:, 0], images[:, 1:].flatten(1, 2), masks


@torch.no_grad()
def validate(network: CoverNet, shots: dict[str, list[Shot]]) -> str:
    """Covered pixels found, uncovered ones taken for covered in covered crops, and the same in uncovered crops."""
    maker = CoverMaker(shots, seed=1)
    network.eval()
    found, wrong, wrong_uncovered = [], [], []
    for _ in range(10):
        source, references, masks = to_tensors(maker.batch())
        marked = torch.sigmoid(network(source, references)) > 0.5
        for mark, mask in zip(marked, masks, strict=True):
            if mask.max() > 0.5:
                found.append(mark[mask > 0.5].float().mean())
                wrong.append(mark[mask < 0.1].float().mean())
            elif mask.max() == 0:
                wrong_uncovered.append(mark.float().mean())
    network.train()
    means = [float(torch.stack(part).nanmean()) for part in (found, wrong, wrong_uncovered)]
    return "found {:.3f}, wrong {:.4f}, wrong in uncovered crops {:.4f}".format(*means)


def run(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    cv2.setNumThreads(1)
    shots, held_out = (load_shots(args.data, split) for split in ("train", "val"))
    network = CoverNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    started, step = time.monotonic(), 0
    batches = DataLoader(MadeBatches(shots), batch_size=None, num_workers=1, prefetch_factor=4)
    with tqdm(unit="step") as bar:
        for source, references, masks in map(to_tensors, batches):
            spent = (time.monotonic() - started) / (60 * args.minutes)
            if spent >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1, (step + 1) / 50) * (0.5 + 0.5 * np.cos(np.pi * spent))
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(source, references)
            loss = F.binary_cross_entropy_with_logits(logits.float(), masks, pos_weight=POSITIVE_WEIGHT)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            bar.update()
            if step % 250 == 0:
                save(network, args.output)
                tqdm.write(f"step {step}: loss {float(loss):.4f}; held out: {validate(network, held_out)}")
    save(network, args.output)
    print(f"{step} steps; held out: {validate(network, held_out)}")


def save(network: CoverNet, path: Path) -> None:
    """Write the weights in 16 bits."""
    tensors = {
        name: tensor.half().contiguous()
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point()
    }
    write_atomically(path, lambda file: file.write(dumps(tensors)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared dataset")
    parser.add_argument("--minutes", type=float, default=30, help="of training (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=COVER_NET, help="default: %(default)s")
    run_command(parser, run)


if __name__ == "__main__":
    main()
