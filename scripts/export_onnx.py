"""Export a generator to ONNX, to run it without PyTorch (see examples/onnx_dub.py).

    python -m scripts.export_onnx --checkpoint checkpoints/dinet_64.safetensors --output dinet.onnx

Two files, because the reference frames are encoded once and then used for many frames:

    dinet.references.onnx   references (1, 3N, H, W) -> encoded and appearance, (1, 256, H/4, W/4) each
    dinet.onnx              masked_source (B, 3, H, W), encoded, appearance, audio_window (B, D, 5)
                            -> image (B, 3, H, W)

All tensors are float32, images RGB in [0, 1], the mouth box of masked_source is 0. B is free; H × W is 13S/8 × 5S/4
with the S of the checkpoint. The metadata of both files hold config, audio_features and mouth_size as JSON. Before
the files are written, their output under onnxruntime is compared with that of PyTorch.
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
from utils.errors import ParameterError
from utils.files import write_atomically

TOLERANCE = 1e-3  # for images in [0, 1]: a quarter of the step between two of 256 levels


class References(nn.Module):
    """`DINet.encode_references` as a module, for the exporter."""

    def __init__(self, model: DINet) -> None:
        super().__init__()
        self.model = model

    def forward(self, references: torch.Tensor) -> ReferenceFeatures:
        return self.model.encode_references(references)


class Generator(nn.Module):
    """`DINet.generate` as a module, for the exporter."""

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
        ParameterError: the generator is not a DINet, or has an ablation in place of AdaAT.
    """
    model = loaded.model
    if not isinstance(model, DINet):
        raise ParameterError("checkpoint", "expected a DINet generator, found Wav2Lip")
    if model.config.deformation != "adaat":  # the exporter supports only some of the ablations
        raise ParameterError("checkpoint", f"expected a generator with AdaAT, found {model.config.deformation}")
    # `DINet` itself, not its `Engine`: onnxruntime folds batch norms too, and the rest of the engine is specific to
    # PyTorch's kernels; exported without the FFT it is no faster.
    references, frames, windows = random_inputs(loaded, 2)
    values = {"config": asdict(model.config)}
    values |= {"audio_features": loaded.audio_features, "mouth_size": loaded.mouth_size}
    metadata = {name: json.dumps(value) for name, value in values.items()}
    with torch.no_grad():
        inputs = {"masked_source": frames, **model.encode_references(references)._asdict(), "audio_window": windows}
        return (
            to_onnx(References(model), {"references": references}, ["encoded", "appearance"], metadata),
            to_onnx(Generator(model), inputs, ["image"], metadata),
        )


def to_onnx(
    module: nn.Module, inputs: dict[str, torch.Tensor], outputs: list[str], metadata: dict[str, str]
) -> bytes:
    """One ONNX file with named inputs and outputs; only the batch dimension of the frames is free."""
    batch = torch.export.Dim("batch")
    dynamic_shapes = {name: {0: batch} if name in ("masked_source", "audio_window") else None for name in inputs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*axis name")  # both inputs share one free dimension on purpose
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamic_shapes=dynamic_shapes,
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(metadata)
    for node in program.model.graph:
        node.metadata_props.clear()  # paths of the source code of every node on this machine
    return program.model_proto.SerializeToString()


def random_inputs(loaded: LoadedModel, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random references (1, 3N, H, W), masked source (B, 3, H, W) and audio windows (B, D, 5)."""
    size, config = crop_size(loaded.mouth_size), loaded.model.config
    frames = DINet.mask(torch.rand(batch, 3, *size))
    windows = torch.randn(batch, config.audio_dim, AUDIO_WINDOW)
    return torch.rand(1, 3 * config.num_references, *size), frames, windows


def largest_difference(loaded: LoadedModel, files: tuple[bytes, bytes], batch: int) -> float:
    """Largest absolute difference between the images of onnxruntime and of PyTorch on random input."""
    references, frames, windows = random_inputs(loaded, batch)
    encoder, generator = (
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]) for content in files
    )
    encoded, appearance = encoder.run(None, {"references": references.numpy()})
    inputs = {"masked_source": frames.numpy(), "audio_window": windows.numpy()}
    (images,) = generator.run(None, inputs | {"encoded": encoded, "appearance": appearance})
    with torch.inference_mode():
        expected = loaded.model(frames, references, windows)
    return float((torch.from_numpy(images) - expected).abs().max())


def run(args: argparse.Namespace) -> None:
    if args.output.suffix != ".onnx":
        raise ParameterError("output", f"expected a name ending in .onnx, found {args.output}")
    loaded = load_model(args.checkpoint)
    files = export(loaded)
    difference = max(largest_difference(loaded, files, batch) for batch in (1, 3))
    print(f"largest difference between onnxruntime and PyTorch: {difference:.1e}")
    if not difference <= TOLERANCE:  # also true for NaN
        sys.exit(f"error: expected at most {TOLERANCE:.0e}; nothing was written")
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
