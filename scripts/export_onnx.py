"""Write a generator as ONNX, to be run without PyTorch (examples/onnx_dub.py does).

    python -m scripts.export_onnx --checkpoint checkpoints/dinet_64.safetensors --output dinet.onnx

Two files, because references are encoded once a video and many frames are drawn with them:

    dinet.references.onnx   references (1, 3N, H, W) -> encoded and appearance, (1, 256, H/4, W/4) each
    dinet.onnx              masked_source (B, 3, H, W), encoded, appearance, audio_window (B, D, 5)
                            -> image (B, 3, H, W)

All float32, pictures RGB in [0, 1], the mouth box of masked_source set to 0. Any B; H × W are the checkpoint's own
13S/8 × 5S/4. The metadata of both say in JSON what else has to be known: config, audio_features, mouth_size.
What is written was run under onnxruntime and gave the pictures that PyTorch gives.
"""

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from models.checkpoint import LoadedModel, load_model
from models.crop_layout import crop_size
from models.dinet import AUDIO_WINDOW, DINet, ReferenceFeatures
from utils.command_line import run_command
from utils.errors import UserError
from utils.files import write_atomically

TOLERANCE = 1e-3  # of pictures in [0, 1]: a quarter of the step between two of 256 levels


class References(nn.Module):
    """`DINet.encode_references` as a module, which is what the exporter takes."""

    def __init__(self, model: DINet) -> None:
        super().__init__()
        self.model = model

    def forward(self, references: torch.Tensor) -> ReferenceFeatures:
        return self.model.encode_references(references)


class Generator(nn.Module):
    """`DINet.generate` as a module, for frames of one video."""

    def __init__(self, model: DINet) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        masked_source: torch.Tensor,
        encoded: torch.Tensor,
        appearance: torch.Tensor,
        audio_window: torch.Tensor,
    ) -> torch.Tensor:
        return self.model.generate(masked_source, ReferenceFeatures(encoded, appearance), audio_window)


def export(loaded: LoadedModel) -> tuple[bytes, bytes]:
    """The two ONNX files of a DINet generator: references, generator.

    Raises:
        UserError: the generator is another, or deforms in another way than AdaAT.
    """
    model = loaded.model
    if not isinstance(model, DINet):
        raise UserError("--checkpoint: expected a DINet generator, found Wav2Lip")
    if model.config.deformation != "adaat":  # the exporter takes some of the ablations and not others
        raise UserError(f"--checkpoint: expected a generator with AdaAT, found {model.config.deformation}")
    # `DINet` itself, not the `Engine` made of it: onnxruntime folds batch norms too, and what else the engine does
    # is for PyTorch's kernels; exported without its spectra it is no faster.
    references, frames, windows = random_inputs(loaded, 2)
    metadata = {"config": asdict(model.config)}
    metadata |= {"audio_features": loaded.audio_features, "mouth_size": loaded.mouth_size}
    described = {name: json.dumps(value) for name, value in metadata.items()}
    with torch.no_grad():
        inputs = {"masked_source": frames, **model.encode_references(references)._asdict(), "audio_window": windows}
        return (
            to_onnx(References(model), {"references": references}, ["encoded", "appearance"], described),
            to_onnx(Generator(model), inputs, ["image"], described),
        )


def to_onnx(
    module: nn.Module, inputs: dict[str, torch.Tensor], outputs: list[str], metadata: dict[str, str]
) -> bytes:
    """One ONNX file from inputs and outputs by name; of the frames' there may be any number, all else is fixed."""
    batch = torch.export.Dim("batch")
    free = {name: {0: batch} if name in ("masked_source", "audio_window") else None for name in inputs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*axis name")  # that both free dimensions are the same one is meant
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamic_shapes=free,
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(metadata)
    for node in program.model.graph:
        node.metadata_props.clear()  # where in whose folders the code of every node lies
    return program.model_proto.SerializeToString()


def random_inputs(loaded: LoadedModel, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """References (1, 3N, H, W), masked source (B, 3, H, W) and audio window (B, D, 5) of noise."""
    size, config = crop_size(loaded.mouth_size), loaded.model.config
    frames = DINet.mask(torch.rand(batch, 3, *size))
    windows = torch.randn(batch, config.audio_dim, AUDIO_WINDOW)
    return torch.rand(1, 3 * config.num_references, *size), frames, windows


def largest_difference(loaded: LoadedModel, files: tuple[bytes, bytes], batch: int) -> float:
    """By how much pictures of `files` under onnxruntime and of PyTorch differ at most, on random input."""
    references, frames, windows = random_inputs(loaded, batch)
    encoder, generator = (
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]) for content in files
    )
    encoded, appearance = encoder.run(None, {"references": references.numpy()})
    inputs = {"masked_source": frames.numpy(), "audio_window": windows.numpy()}
    (drawn,) = generator.run(None, inputs | {"encoded": encoded, "appearance": appearance})
    with torch.inference_mode():
        expected = loaded.model(frames, references, windows)
    return float((torch.from_numpy(drawn) - expected).abs().max())


def run(args: argparse.Namespace) -> None:
    if args.output.suffix != ".onnx":
        raise UserError(f"--output: expected a name ending in .onnx, found {args.output}")
    loaded = load_model(args.checkpoint)
    files = export(loaded)
    difference = max(largest_difference(loaded, files, batch) for batch in (1, 3))
    print(f"largest difference between onnxruntime and PyTorch: {difference:.1e}")
    if not difference <= TOLERANCE:  # nor if it is NaN
        sys.exit(f"error: expected {TOLERANCE:.0e} at most, so nothing was written")
    for path, content in zip((args.output.with_suffix(".references.onnx"), args.output), files, strict=True):
        write_atomically(path, lambda file, content=content: file.write(content))
        print(f"{path}: {len(content) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="generator: .safetensors, or the authors' .pth")
    add("--output", type=Path, default=Path("dinet.onnx"), help=".onnx to write (default dinet.onnx)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
