"""Generate the bundled example media: python -m scripts.make_example, in the root of the repository.

examples/portrait.mp4  a public-domain portrait, animated to talk, with a synthetic voice
examples/speech.wav    another sentence in the same voice, to dub the portrait with

The repository includes both files; this script documents their origin. Speech is synthesised by a small neural
network that a package includes: pip install hibari-tts==0.2.1
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.signal import butter, resample_poly, sosfiltfilt

from data_processing.media.audio_io import SAMPLE_RATE, save_wav
from data_processing.media.video_reader import FPS
from data_processing.media.video_writer import VideoWriter
from utils.bundled import EXAMPLE_AUDIO, EXAMPLE_VIDEO
from utils.command_line import run_command
from utils.errors import UserError

PORTRAIT_TEXT = "Hello! I am a photograph that a small script has taught to talk. My voice is made up too."
SPEECH_TEXT = "Welcome! This project takes a video of a face and a new recording, and makes the lips match."

SIZE = 512

# Positions in pixels, annotated by hand on the image that `load_portrait` returns.
LIP_X = [200, 213, 220, 228, 236, 244, 252, 262, 270, 278, 286, 292, 298, 311]
UPPER_LIP_Y = [279, 280, 281, 282.5, 284.5, 286, 287, 287, 286, 284.5, 282, 281, 281.5, 281]
LOWER_LIP_Y = [279, 280, 287, 292, 296, 298.5, 299.5, 299, 297.5, 293.5, 288.5, 285, 281.5, 281]
JAW_X = [168, 176, 189, 207, 227, 250, 274, 296, 316, 330, 345]
JAW_Y = [277, 300, 321, 338, 352, 358, 354, 342, 326, 306, 260]
MOUTH_X, MOUTH_Y = 255.5, 290
NOSE_BASE_Y = 266
COLLAR_Y = 390
LEFT_EYE_X = [191, 195, 200, 206, 214, 221, 228, 236]
LEFT_EYE_UPPER_Y = [203, 201, 198.5, 197, 197, 199, 203, 208]
LEFT_EYE_LOWER_Y = [203, 205, 207, 209, 210.5, 209.5, 208.5, 208]
RIGHT_EYE_X = [280, 288, 294, 302, 310, 318, 326]
RIGHT_EYE_UPPER_Y = [211, 205, 201, 200, 201, 204.5, 209]
RIGHT_EYE_LOWER_Y = [211, 212, 213, 214, 213, 211.5, 209]
HEAD_CENTRE = (260, 195)
HEAD_RADII = (150, 165)
NECK = (262, 385)
BLINKS_S = (1.1, 3.6, 5.2)


def load_portrait() -> np.ndarray:
    """The head and collar of NASA's portrait of Eileen Collins, (SIZE, SIZE, 3) uint8 RGB."""
    head = skimage.data.astronaut()[0:256, 96:352]
    return cv2.resize(head, (SIZE, SIZE), interpolation=cv2.INTER_LANCZOS4)


def synthesise(text: str) -> np.ndarray:
    """Synthesise a sentence: (N,) float32 in [-1, 1] at 16 kHz, with 0.2 s of silence at both ends.

    Raises:
        UserError: the speech synthesis package is not installed.
    """
    try:
        from hibari import Hibari
    except ImportError:
        raise UserError("speech synthesis is not installed; run: pip install hibari-tts==0.2.1") from None
    voice = resample_poly(Hibari()(text, seed=0), 2, 3)  # 24 kHz to 16 kHz
    return np.pad(0.8 * voice / np.abs(voice).max(), SAMPLE_RATE // 5).astype(np.float32)


def mouth_opening(voice: np.ndarray, num_frames: int) -> np.ndarray:
    """Mouth opening of each frame from the loudness of vowels: (num_frames,) in [0, 1]; 0 in silence."""
    # vowels open the mouth; fricatives, which are loud above this band, do not
    vowels = sosfiltfilt(butter(2, (200, 2500), "bandpass", fs=SAMPLE_RATE, output="sos"), voice)
    loudness = np.sqrt(gaussian_filter1d(vowels**2, 0.025 * SAMPLE_RATE))
    loudness = loudness[np.arange(num_frames) * SAMPLE_RATE // FPS]  # frame k is at k / FPS s
    return np.clip(loudness / np.percentile(loudness, 97), 0, 1) ** 0.7


def eye_closure(num_frames: int) -> np.ndarray:
    """How far the eyes are closed in each frame, (num_frames,) in [0, 1]."""
    times = np.arange(num_frames) / FPS
    return np.clip(sum(1.3 * np.exp(-(((times - t) / 0.065) ** 2)) for t in BLINKS_S), 0, 1)


def warp_columns(knots_y: np.ndarray, moved_y: np.ndarray) -> np.ndarray:
    """Source rows (SIZE, SIZE) float32 of a vertical warp that moves the knots of each column.

    Knots move from `knots_y` to `moved_y`, both (K, SIZE) and increasing along K. Between knots the warp is linear;
    outside them it is the identity.
    """
    rows = np.arange(SIZE, dtype=np.float64)
    columns = [np.interp(rows, moved_y[:, x], knots_y[:, x], left=-1, right=-1) for x in range(SIZE)]
    source_rows = np.stack(columns, axis=1)
    return np.where(source_rows < 0, rows[:, None], source_rows).astype(np.float32)


class Face:
    """The portrait with movable lips, jaw, eyelids and head."""

    def __init__(self, portrait: np.ndarray) -> None:
        columns = np.arange(SIZE)
        self.y, self.x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
        self.upper_lip = np.interp(columns, LIP_X, UPPER_LIP_Y)
        self.lower_lip = np.interp(columns, LIP_X, LOWER_LIP_Y)
        jaw = gaussian_filter1d(np.interp(columns, JAW_X, JAW_Y), 4)
        self.jaw = np.maximum(jaw, self.lower_lip + 10)  # also beside the face, where nothing moves
        # The motion of the lips fades out at the corners of the mouth, that of the jaw at the sides of the face.
        self.lip_profile = np.clip(1 - ((columns - MOUTH_X) / 44) ** 2, 0, 1)
        self.jaw_profile = np.exp(-(((columns - MOUTH_X) / 48) ** 2))

        inside = (self.y > self.upper_lip) & (self.y < self.lower_lip)
        self.skin = portrait.astype(np.float32)
        self.skin_alpha = 1 - gaussian_filter(inside.astype(np.float32), 0.8)
        # Behind the lips: the teeth of the photo, and below their edge a dark interior with a reddish tongue.
        below_teeth = self.y - (self.lower_lip - 1.0)
        tongue = np.exp(-(((self.x - MOUTH_X) / 24) ** 2)) * np.clip((below_teeth - 4) / 10, 0, 1)
        dark = np.array([38, 14, 12]) + tongue[..., None] * np.array([78, 36, 34])
        teeth = 1 / (1 + np.exp(below_teeth / 0.6))[..., None]
        self.interior = (self.skin * teeth + dark * (1 - teeth)).astype(np.float32)

        distance = np.hypot((self.x - HEAD_CENTRE[0]) / HEAD_RADII[0], (self.y - HEAD_CENTRE[1]) / HEAD_RADII[1])
        falloff = np.clip((distance - 1) / 0.55, 0, 1)
        self.head_weight = 1 - falloff**2 * (3 - 2 * falloff)
        self.depth = np.exp(-(distance**2) / 0.7)

    def talk(self, opening: float, blink: float) -> tuple[np.ndarray, np.ndarray]:
        """Source rows (SIZE, SIZE) for lips and eyelids, and the lip gap per column (SIZE,) in pixels."""
        gap = self.lower_lip - self.upper_lip
        closing = max(0.0, 1 - opening / 0.4)
        upper_shift = 0.45 * closing * gap
        lower_shift = 14 * opening * self.lip_profile - 0.5 * closing * gap
        jaw_shift = (13 * opening - 2 * closing) * self.jaw_profile
        still = np.zeros(SIZE)
        nose, collar = still + NOSE_BASE_Y, still + COLLAR_Y
        knots = np.stack([nose, self.upper_lip - 0.01, self.lower_lip, self.jaw, collar])
        lips = warp_columns(knots, knots + np.stack([still, upper_shift, lower_shift, jaw_shift, still]))

        for eye_x, upper_y, lower_y in (
            (LEFT_EYE_X, LEFT_EYE_UPPER_Y, LEFT_EYE_LOWER_Y),
            (RIGHT_EYE_X, RIGHT_EYE_UPPER_Y, RIGHT_EYE_LOWER_Y),
        ):
            upper, lower = (np.interp(np.arange(SIZE), eye_x, lid) for lid in (upper_y, lower_y))
            knots = np.stack([upper - 18, upper - 0.01, lower])
            shift = 0.97 * blink * (lower - upper)
            lids = warp_columns(knots, knots + np.stack([still, shift, still]))
            rows = slice(int(upper.min()) - 19, int(lower.max()) + 2)
            columns = slice(eye_x[0], eye_x[-1] + 1)
            lips[rows, columns] = lids[rows, columns]
        return lips, gap + lower_shift - upper_shift

    def move_head(self, time_s: float, opening: float) -> tuple[np.ndarray, np.ndarray]:
        """Source coordinates (x, y), each (SIZE, SIZE), of a head that sways on a static body."""

        def wave(period_s: float, phase: float) -> float:
            return np.sin(2 * np.pi * (time_s / period_s + phase))

        angle = np.deg2rad(1.8 * wave(4.3, 0.1) + 0.6 * wave(1.9, 0.4))
        scale = 1 + 0.012 * wave(5.1, 0.3)
        shift = 3.0 * wave(3.7, 0.6), 2.0 * wave(2.3, 0.2) + 1.2 * opening
        turn, nod = 5.0 * wave(5.9, 0.05), 3.0 * wave(2.9, 0.7)
        x, y = self.x - NECK[0], self.y - NECK[1]
        moved_x = scale * (np.cos(angle) * x - np.sin(angle) * y) - x + shift[0] + turn * self.depth
        moved_y = scale * (np.sin(angle) * x + np.cos(angle) * y) - y + shift[1] + nod * self.depth
        # For small displacements, the negative is a sufficient approximation of the inverse.
        return self.x - self.head_weight * moved_x, self.y - self.head_weight * moved_y

    def render(self, time_s: float, opening: float, blink: float) -> np.ndarray:
        """One frame, (SIZE, SIZE, 3) uint8 RGB."""
        source_rows, gap = self.talk(opening, blink)
        x, y = (field.astype(np.float32) for field in self.move_head(time_s, opening))
        # The mouth narrows as it opens; with the fixed wide smile of the photo it would not resemble speech.
        near_mouth = np.exp(-(((x - MOUTH_X) / 48) ** 2) - ((y - MOUTH_Y) / 36) ** 2)
        x += 0.14 * opening * near_mouth * (x - MOUTH_X)
        talking_y = cv2.remap(source_rows, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

        def sample(image: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return cv2.remap(image, x, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)

        # Closed lips show a dark line and no teeth.
        light = np.interp(gap, [0, 1.5, 6], [0.4, 0.5, 1]).astype(np.float32)
        interior = sample(self.interior * light[:, None], y)
        alpha = np.clip(sample(self.skin_alpha, talking_y), 0, 1)[..., None]
        frame = alpha * sample(self.skin, talking_y) + (1 - alpha) * interior
        return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def write_portrait(path: Path, voice: np.ndarray) -> None:
    """Write a video of the portrait speaking `voice`, (N,) float32 at 16 kHz, as MP4 with H.264 and AAC."""
    num_frames = len(voice) * FPS // SAMPLE_RATE
    face = Face(load_portrait())
    with tempfile.TemporaryDirectory() as folder:
        audio = Path(folder) / "voice.wav"
        save_wav(audio, voice)
        with VideoWriter(path, SIZE, SIZE, crf=18, audio_paths=[audio]) as writer:
            for index, (opening, blink) in enumerate(
                zip(mouth_opening(voice, num_frames), eye_closure(num_frames), strict=True)
            ):
                writer.write(face.render(index / FPS, opening, blink))


def run(args: argparse.Namespace) -> None:
    """Write both example files and print their sizes."""
    save_wav(EXAMPLE_AUDIO, synthesise(SPEECH_TEXT))
    write_portrait(EXAMPLE_VIDEO, synthesise(PORTRAIT_TEXT))
    for path in (EXAMPLE_VIDEO, EXAMPLE_AUDIO):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run_command(parser, run)


if __name__ == "__main__":
    main()
