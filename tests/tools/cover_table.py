"""What covers the mouth, and what is left of it in a dub: python -m tests.tools.cover_table FOLDER

Draws covers on the videos of a folder (talking faces) and dubs them with the videos' own audio, with and without
keeping covers. The covers are drawings, not filmed: flat shapes with shading and noise, the hand in the person's
own skin. Those that move do so once over all frames; still ones stand where the lips are on average. Reference
frames are chosen from all frames, the first half of which is dubbed. Prints for each kind of cover, in Markdown:

- kept: covered pixels of the mouth box that are in the dub as they were, to TOLERANCE grey levels; and in the dub
  that does not keep covers;
- lost: uncovered pixels of the lips that the dub without keeping covers changes and the other one less than half;
- away: the part of them that is farther than NEAR face radii from the cover, so that it is not its edge;
- flicker of lost: how much this share changes from frame to frame.

The last row is of the unchanged videos: the difference of the two dubs in the mouth box.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data_processing.face.crop import FaceCrop
from data_processing.face.radius import crop_radii
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import FPS, read_frames
from dubbing.audio_stream import AudioStream
from dubbing.compositor import Compositor
from dubbing.face_track import track_face
from dubbing.frame_sources import LiveFrameSource
from dubbing.pipeline import DubbingPipeline
from dubbing.speaker import Speaker
from evaluation.folders import find_videos
from utils.command_line import run_command

TOLERANCE = 3  # grey levels
NEAR = 0.06  # face radii: 2 pixels at S = 64
CANVAS = 400  # pixels: side of the square on which a cover is drawn; its middle is the lips, 100 pixels the radius

Sprite = tuple[np.ndarray, np.ndarray]  # (CANVAS, CANVAS, 3) colours and (CANVAS, CANVAS) opacity, float32


def draw_hand(skin: np.ndarray) -> Sprite:
    """A hand with bent fingers, in the person's own skin, rounded by its shading, with nails."""
    mask, shade = np.zeros((CANVAS, CANVAS), np.float32), np.ones((CANVAS, CANVAS), np.float32)
    colour = cv2.resize(skin, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    fingers = [((150, 260), (118, 190), (110, 120), 17), ((180, 240), (165, 150), (172, 70), 19),
               ((213, 240), (215, 140), (226, 55), 20), ((245, 252), (262, 165), (272, 90), 18),
               ((250, 330), (305, 280), (318, 225), 21)]  # fmt: skip
    palm = np.array([(140, 250), (262, 240), (280, 330), (255, 420), (160, 420), (138, 340)])
    for part in [*fingers, None]:
        own = np.zeros_like(mask)
        if part is None:
            cv2.fillPoly(own, [palm], 1.0, cv2.LINE_AA)
            own = cv2.GaussianBlur(own, (0, 0), 6)
        else:
            *joints, width = part
            cv2.polylines(own, [np.array(joints)], False, 1.0, 2 * width, cv2.LINE_AA)
        own = np.float32(own > 0.5)
        depth = np.minimum(cv2.distanceTransform(np.uint8(own), cv2.DIST_L2, 3) / 14, 1)
        shade = np.where(own > 0, 0.6 + 0.4 * depth, shade)
        mask = np.maximum(mask, own)
    for *_, tip, width in fingers:
        cv2.ellipse(colour, tip, (width // 2, width * 2 // 3), 0, 0, 360, (235, 200, 190), -1, cv2.LINE_AA)
    light = np.linspace(1.08, 0.9, CANVAS, dtype=np.float32)[None, :, None]
    return colour * shade[..., None] * light, mask


def draw_microphone(skin: np.ndarray) -> Sprite:
    """A black microphone from below, its head before the chin and the lower lip, with a grille and a highlight."""
    mask, colour = np.zeros((CANVAS, CANVAS), np.float32), np.zeros((CANVAS, CANVAS, 3), np.float32)
    cv2.line(mask, (225, 240), (262, 400), 1.0, 34, cv2.LINE_AA)
    cv2.circle(mask, (220, 235), 38, 1.0, -1, cv2.LINE_AA)
    y, x = np.mgrid[:CANVAS, :CANVAS]
    grille = 18 * (np.sin(x * 0.9) * np.sin(y * 0.9) > 0)
    highlight = 60 * np.exp(-((x - 208) ** 2 + (y - 222) ** 2) / 150)
    colour[:] = (45 + grille + highlight)[..., None]
    return colour, mask


def draw_caption(skin: np.ndarray) -> Sprite:
    """Two lines of white letters with a black outline over the chin and the lower lip."""
    opaque, white = np.zeros((CANVAS, CANVAS), np.uint8), np.zeros((CANVAS, CANVAS), np.uint8)
    for text, position in (("what do you say to", (40, 232)), ("people who ask", (75, 268))):
        for image, thickness in ((opaque, 9), (white, 3)):
            cv2.putText(image, text, position, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, thickness, cv2.LINE_AA)
    return np.repeat(white[..., None].astype(np.float32), 3, axis=2), opaque / np.float32(255)


def draw_bar(skin: np.ndarray) -> Sprite:
    """A thin grey rod."""
    mask = np.zeros((CANVAS, CANVAS), np.float32)
    cv2.line(mask, (185, 0), (215, 400), 1.0, 9, cv2.LINE_AA)
    x = np.arange(CANVAS, dtype=np.float32)[None, :, None]
    return np.broadcast_to(150 + 0.2 * x, (CANVAS, CANVAS, 3)).astype(np.float32), mask


def draw_cup(skin: np.ndarray) -> Sprite:
    """A blue cup with a white band."""
    mask, colour = np.zeros((CANVAS, CANVAS), np.float32), np.zeros((CANVAS, CANVAS, 3), np.float32)
    cv2.fillPoly(mask, [np.array([(130, 205), (270, 205), (255, 390), (145, 390)])], 1.0, cv2.LINE_AA)
    cv2.ellipse(mask, (200, 205), (70, 14), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
    colour[:] = (60, 90, 160)
    colour[290:320] = (230, 230, 225)
    light = 0.6 + 0.5 * np.sin(np.pi * (np.arange(CANVAS, dtype=np.float32) - 120) / 160)
    return colour * light[None, :, None].clip(0.3, 1.1), mask


def draw_logo(skin: np.ndarray) -> Sprite:
    """A red disc with white letters at the corner of the mouth."""
    mask, colour = np.zeros((CANVAS, CANVAS), np.float32), np.zeros((CANVAS, CANVAS, 3), np.float32)
    cv2.circle(mask, (245, 225), 34, 1.0, -1, cv2.LINE_AA)
    letters = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.putText(letters, "tv", (225, 236), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 4, cv2.LINE_AA)
    colour[:] = (190, 30, 40)
    return np.where(letters[..., None] > 100, np.float32(245), colour), mask


def across(part: float) -> tuple[float, float]:
    """From the left of the face to its right and back, in radii."""
    return 2.6 * np.cos(2 * np.pi * part), 0.25 * np.sin(6 * np.pi * part)


def from_below(part: float) -> tuple[float, float]:
    """From under the chin to the lips and away again."""
    return 0.05 * np.sin(9 * part), 1.6 * (0.5 + 0.5 * np.cos(2 * np.pi * part))


def still(part: float) -> tuple[float, float]:
    return 0.0, 0.0


COVERS: dict[str, tuple[Callable[[np.ndarray], Sprite], Callable[[float], tuple[float, float]]]] = {
    "hand that moves across": (draw_hand, across),
    "microphone, still": (draw_microphone, still),
    "caption, still": (draw_caption, still),
    "thin bar that moves across": (draw_bar, across),
    "cup that comes and goes": (draw_cup, from_below),
    "logo, still": (draw_logo, still),
}


def cover(frames: list[np.ndarray], landmarks: Landmarks, kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw a cover on frames.

    Returns:
        New frames, and for each its mask (H, W) float32, the opacity of the cover.
    """
    draw, path = COVERS[kind]
    points = landmarks.points[: len(frames)]
    lips, radius_px = np.nanmean(points[:, 48:60], axis=(0, 1)), float(np.nanmedian(crop_radii(points)))
    column, row = points[0, [1, 2, 31]].mean(axis=0).round().astype(int)  # a cheek
    reach = max(3, round(0.16 * radius_px))
    skin = frames[0][row - reach : row + reach, column - reach : column + reach].astype(np.float32)
    colour, opacity = draw(skin)
    covered, masks = [], []
    for index, frame in enumerate(frames):
        scale = radius_px / 100
        position = lips + radius_px * np.array(path(index / len(frames))) - scale * CANVAS / 2
        left, top = np.maximum(np.floor(position).astype(int) - 4, 0)
        box = slice(top, top + round(scale * CANVAS) + 8), slice(left, left + round(scale * CANVAS) + 8)
        part, mask = frame[box], np.zeros(frame.shape[:2], np.float32)
        matrix = np.array([[scale, 0, position[0] - left], [0, scale, position[1] - top]])
        method = cv2.INTER_LINEAR if scale > 0.7 else cv2.INTER_AREA
        covered.append(frame.copy())
        masks.append(mask)
        if not part.size:  # beside the frame
            continue
        own = cv2.GaussianBlur(cv2.warpAffine(opacity, matrix, part.shape[1::-1], flags=method), (0, 0), 0.8)
        pixels = cv2.warpAffine(colour, matrix, part.shape[1::-1], flags=method, borderMode=cv2.BORDER_REPLICATE)
        noise = np.random.default_rng(index).normal(0, 1.5, part.shape)
        mixed = part + (pixels + noise - part) * own[..., None]
        covered[-1][box], mask[box] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8), own
    return covered, masks


def dub(pipeline: DubbingPipeline, frames: list[np.ndarray], waveform: np.ndarray, keep: bool) -> list[np.ndarray]:
    """The output frames of a dub that is as long as the audio (n,) at 16 kHz, without a file."""
    source = LiveFrameSource((frame.copy() for frame in frames), FPS)
    audio = AudioStream(iter([waveform]), pipeline.generator.audio_features)
    speaker = Speaker(pipeline.generator, source, audio, track_face(source), look_ahead_s=8, keep_covers=keep)
    return [pair.dubbed.rgb() for pair in Compositor(source, [speaker]).frames()]


def compare(
    sources: list[np.ndarray],
    masks: list[np.ndarray],
    landmarks: Landmarks,
    keeping: list[np.ndarray],
    changing: list[np.ndarray],
) -> dict[str, np.ndarray]:
    """Shares of pixels per frame; NaN where there are none.

    Args:
        sources, masks: of `cover`.
        landmarks: of the video without covers.
        keeping, changing: the dubs with and without keeping covers.
    """
    shares: dict[str, list[float]] = {"kept": [], "kept_without": [], "lost": [], "away": [], "difference": []}
    radii = crop_radii(landmarks.points[: len(sources)])
    for index, (source, mask, own, other) in enumerate(zip(sources, masks, keeping, changing, strict=False)):
        points = landmarks.points[index]
        if np.isnan(points).any():
            continue
        crop = FaceCrop.from_landmarks(points, radii[index], 64)
        left, top, right, bottom = np.rint(crop.mouth_bounds()).astype(int).clip(0)
        box = slice(top, bottom), slice(left, right)
        inside = np.zeros(mask.shape, np.uint8)
        cv2.fillConvexPoly(inside, np.rint(cv2.convexHull(points[48:60].astype(np.float32))).astype(np.int32), 1)
        images = (source[box].astype(int), own[box].astype(int), other[box].astype(int))
        change, change_without = (np.abs(image - images[0]).max(axis=2) for image in images[1:])
        covered, uncovered = mask[box] > 0.5, (mask[box] < 0.02) & (inside[box] > 0)
        shares["kept"].append(_mean(change[covered] <= TOLERANCE))
        shares["kept_without"].append(_mean(change_without[covered] <= TOLERANCE))
        changed = uncovered & (change_without > TOLERANCE)
        is_lost = change < change_without / 2
        shares["lost"].append(_mean(is_lost[changed]))
        distance = cv2.distanceTransform(np.uint8(~covered), cv2.DIST_L2, 5)
        is_away = (distance > NEAR * radii[index]) | ~covered.any()
        shares["away"].append(_mean((is_lost & is_away)[changed]))
        shares["difference"].append(float(np.abs(images[1] - images[2]).mean()))
    return {name: np.array(values) for name, values in shares.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def run(args: argparse.Namespace) -> None:
    pipeline = DubbingPipeline(device="cpu")
    results: dict[str, list[dict[str, np.ndarray]]] = {kind: [] for kind in (*COVERS, "")}
    videos = find_videos(args.folder)
    for name, path in tqdm(videos.items(), unit="video"):
        landmarks = find_landmarks(path, stop=args.frames)
        frames = list(read_frames(path, stop=args.frames))
        waveform = load_audio(path)[: len(frames) // 2 * 16000 // FPS]
        for kind, shares in results.items():
            covered, masks = frames, [np.zeros(frames[0].shape[:2], np.float32)] * len(frames)
            if kind:
                covered, masks = cover(frames, landmarks, kind)
            dubs = [dub(pipeline, covered, waveform, keep) for keep in (True, False)]
            shares.append(compare(covered, masks, landmarks, *dubs))
            tqdm.write(f"{name}, {kind or 'uncovered'}: {_row(shares[-1:])}")
            if args.output:
                args.output.mkdir(parents=True, exist_ok=True)
                picture = [np.vstack(column) for column in list(zip(covered, *dubs, strict=False))[5::6]]
                cv2.imwrite(str(args.output / f"{name} {kind}.png"), np.hstack(picture)[..., ::-1])
    print(f"\n{len(videos)} videos, {args.frames} frames each\n")
    print("| cover | kept | kept without | lost | away | flicker of lost | difference, grey levels |")
    print("|---|---|---|---|---|---|---|")
    for kind, shares in results.items():
        print(f"| {kind or 'none'} | {_row(shares)} |")


def _row(shares: list[dict[str, np.ndarray]]) -> str:
    """Means over videos of the means over frames."""
    by_video = [
        {name: _mean(values[~np.isnan(values)]) for name, values in one.items()}
        | {"flicker": float(np.nanmean(np.abs(np.diff(one["lost"]))))}
        for one in shares
    ]
    means = {name: np.nanmean([video[name] for video in by_video]) for name in by_video[0]}
    cells = [f"{means[name]:.1%}" for name in ("kept", "kept_without", "lost", "away")]
    return " | ".join([*cells, f"{means['flicker']:.1%}", f"{means['difference']:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="videos of talking faces")
    parser.add_argument("--frames", type=int, default=100, help="of each video (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for pictures: source, dub that keeps covers, dub")
    run_command(parser, run)


if __name__ == "__main__":
    main()
