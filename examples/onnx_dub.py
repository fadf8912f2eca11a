"""Dub three seconds of the bundled example with an exported generator under onnxruntime.

    python -m scripts.export_onnx --checkpoint checkpoints/dinet_64.safetensors --output dinet.onnx
    python -m examples.onnx_dub dinet.onnx dubbed.mp4

Only the audio features need PyTorch (Whisper's encoder). Unlike inference.py, this example assumes one shot with a
face in every frame and audio that is not longer than the video, and takes evenly spaced reference frames.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime

from data_processing.audio.features import extract_features
from data_processing.audio.framing import audio_windows
from data_processing.face.crop import FaceCrop
from data_processing.face.radius import crop_radii
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import FPS, check_readable, read_frames
from data_processing.media.video_writer import VideoWriter, check_writable
from models.crop_layout import mouth_box
from utils.bundled import EXAMPLE_AUDIO, EXAMPLE_VIDEO
from utils.command_line import run_command
from utils.errors import CheckpointError

NUM_FRAMES = 3 * FPS
BATCH_SIZE = 8


def to_input(crops: list[np.ndarray]) -> np.ndarray:
    """Crops (H, W, 3) uint8 RGB -> (B, 3, H, W) float32 in [0, 1]."""
    return np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255


def run(args: argparse.Namespace) -> None:
    video, audio = EXAMPLE_VIDEO, EXAMPLE_AUDIO
    paths = (args.model.with_suffix(".references.onnx"), args.model)
    for path in paths:
        check_readable(path)
    check_writable(args.output)
    try:
        encoder, generator = (onnxruntime.InferenceSession(path) for path in paths)
        metadata = {name: json.loads(text) for name, text in generator.get_modelmeta().custom_metadata_map.items()}
        metadata["config"], metadata["mouth_size"], metadata["audio_features"]
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise CheckpointError(args.model, "was not written by scripts/export_onnx.py") from error

    frames = list(islice(read_frames(video), NUM_FRAMES))
    points = find_landmarks(video, stop=NUM_FRAMES).points
    placements = zip(points, crop_radii(points), strict=True)
    crops = [FaceCrop.from_landmarks(face, radius_px, metadata["mouth_size"]) for face, radius_px in placements]
    source_crops = [crop.extract(frame) for crop, frame in zip(crops, frames, strict=True)]
    references = np.linspace(0, NUM_FRAMES - 1, metadata["config"]["num_references"]).astype(int)
    stacked = to_input([source_crops[index] for index in references])
    encoded, appearance = encoder.run(None, {"references": stacked.reshape(1, -1, *stacked.shape[2:])})
    features = extract_features(load_audio(audio), metadata["audio_features"])

    rows, columns = mouth_box(metadata["mouth_size"])
    with VideoWriter(args.output, frames[0].shape[1], frames[0].shape[0], audio_paths=[audio]) as writer:
        for start in range(0, NUM_FRAMES, BATCH_SIZE):
            batch = range(start, min(start + BATCH_SIZE, NUM_FRAMES))
            masked = to_input([source_crops[index] for index in batch])
            masked[..., rows, columns] = 0
            inputs = {"masked_source": masked, "audio_window": audio_windows(features, np.array(batch))}
            (images,) = generator.run(None, inputs | {"encoded": encoded, "appearance": appearance})
            images = (images * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
            for index, image in zip(batch, images, strict=True):
                writer.write(crops[index].paste(frames[index], image, points[index]))
    print(f"{args.output}: {NUM_FRAMES} frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="file of scripts.export_onnx; NAME.references.onnx lies beside it")
    parser.add_argument("output", type=Path, help="video to write")
    run_command(parser, run)


if __name__ == "__main__":
    main()
