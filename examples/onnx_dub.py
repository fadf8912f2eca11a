"""Dub three seconds of the bundled example with an exported generator, run by onnxruntime.

    python -m scripts.export_onnx --checkpoint checkpoints/dinet_64.safetensors --output dinet.onnx
    python examples/onnx_dub.py dinet.onnx dubbed.mp4

Only the audio features need PyTorch (Whisper's encoder, data_processing/whisper.py), the network and the rest do
not. `inference.py` also knows several shots, frames without a face and sound longer than the video, and chooses the
references by how the mouth stands.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime

from data_processing.audio.features import extract_features
from data_processing.audio.framing import audio_windows
from data_processing.face.crop import FaceCrop, crop_radius
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import FPS, check_readable, read_frames
from data_processing.media.video_writer import VideoWriter, check_writable
from models.crop_layout import mouth_box
from utils.command_line import run_command
from utils.errors import UserError

EXAMPLES = Path(__file__).parent
NUM_FRAMES = 3 * FPS
BATCH_SIZE = 8


def to_input(crops: list[np.ndarray]) -> np.ndarray:
    """Crops (H, W, 3) uint8 RGB -> (B, 3, H, W) float32 in [0, 1]."""
    return np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255


def run(args: argparse.Namespace) -> None:
    video, audio = EXAMPLES / "portrait.mp4", EXAMPLES / "speech.wav"
    paths = (args.model.with_suffix(".references.onnx"), args.model)
    for path in paths:
        check_readable(path)
    check_writable(args.output)
    try:
        encoder, generator = (onnxruntime.InferenceSession(path) for path in paths)
        known = {name: json.loads(text) for name, text in generator.get_modelmeta().custom_metadata_map.items()}
        known["config"], known["mouth_size"], known["audio_features"]
    except Exception as error:  # onnxruntime raises many kinds, of no common one
        raise UserError(f"model: expected what export_onnx.py writes, found another file: {args.model}") from error

    frames = list(islice(read_frames(video), NUM_FRAMES))
    points = find_landmarks(video, stop=NUM_FRAMES).points
    radius = crop_radius(points)
    crops = [FaceCrop.from_landmarks(face, radius, known["mouth_size"]) for face in points]
    extracted = [crop.extract(frame) for crop, frame in zip(crops, frames, strict=True)]
    spread = np.linspace(0, NUM_FRAMES - 1, known["config"]["num_references"]).astype(int)
    stacked = to_input([extracted[index] for index in spread])
    encoded, appearance = encoder.run(None, {"references": stacked.reshape(1, -1, *stacked.shape[2:])})
    features = extract_features(load_audio(audio), known["audio_features"])

    rows, columns = mouth_box(known["mouth_size"])
    with VideoWriter(args.output, frames[0].shape[1], frames[0].shape[0], audio_paths=[audio]) as writer:
        for start in range(0, NUM_FRAMES, BATCH_SIZE):
            batch = range(start, min(start + BATCH_SIZE, NUM_FRAMES))
            masked = to_input([extracted[index] for index in batch])
            masked[..., rows, columns] = 0
            inputs = {"masked_source": masked, "audio_window": audio_windows(features, np.array(batch))}
            (images,) = generator.run(None, inputs | {"encoded": encoded, "appearance": appearance})
            images = (images * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
            for index, image in zip(batch, images, strict=True):
                writer.write(crops[index].paste(frames[index], image, points[index]))
    print(f"{args.output}: {NUM_FRAMES} frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the .onnx file that export_onnx.py wrote, the other beside it")
    parser.add_argument("output", type=Path, help="video to write")
    run_command(parser, run)


if __name__ == "__main__":
    main()
