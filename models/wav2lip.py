"""The generator of Wav2Lip (Prajwal et al., "A lip sync expert is all you need", 2020), at 96 pixels as published
and at larger sizes: a baseline in the paper's Table 1."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

MEL_BINS, MEL_COLUMNS = 80, 16  # size of the mel spectrogram window
DOUBLINGS = {96: 0, 192: 1, 384: 2}  # face size -> how often it doubles the published size


@dataclass(frozen=True)
class Wav2LipConfig:
    """Architecture of a Wav2Lip generator; stored in every checkpoint.

    face_size: side of the square faces in pixels: 96, 192 or 384.
    bgr: the weights were trained on BGR images, as those of the authors; images are converted internally.
    """

    face_size: int = 96
    bgr: bool = False

    num_references = 1
    audio_dim = MEL_BINS * MEL_COLUMNS


class Wav2Lip(nn.Module):
    """Generates a face whose lips follow the audio, from the face with its lower half masked and a reference.

    At 96 pixels, names and shapes of the tensors are those of the authors' release. Every doubling of the size adds
    one outer stage to encoder and decoder. The interface is that of `DINet`.
    """

    def __init__(self, config: Wav2LipConfig) -> None:
        super().__init__()
        self.config = config
        doublings = DOUBLINGS[config.face_size]
        down = ((32, 2), (64, 3), (128, 2), (256, 2), (512, 1))  # channels, residual convolutions
        # channels in, including those of the skip connection, and out
        up = ((1024, 512), (768, 384), (512, 256), (320, 128), (160, 64))
        self.face_encoder_blocks = nn.ModuleList(
            [
                nn.Sequential(_Conv(6, 16, 7, padding=3)),
                *(_stage(_Conv(16, 16, stride=2), 1) for _ in range(doublings)),
                *(_stage(_Conv(width // 2, width, stride=2), depth) for width, depth in down),
                nn.Sequential(_Conv(512, 512, padding=0), _Conv(512, 512, 1, padding=0)),
            ]
        )
        self.audio_encoder = nn.Sequential(
            *_stage(_Conv(1, 32), 2),
            *_stage(_Conv(32, 64, stride=(3, 1)), 2),
            *_stage(_Conv(64, 128, stride=3), 2),
            *_stage(_Conv(128, 256, stride=(3, 2)), 1),
            _Conv(256, 512, padding=0),
            _Conv(512, 512, 1, padding=0),
        )
        self.face_decoder_blocks = nn.ModuleList(
            [
                nn.Sequential(_Conv(512, 512, 1, padding=0)),
                _stage(_UpConv(1024, 512, padding=0), 1),
                *(_stage(_UpConv(in_channels, width, stride=2, output_padding=1), 2) for in_channels, width in up),
                *(_stage(_UpConv(64 + 16, 64, stride=2, output_padding=1), 1) for _ in range(doublings)),
            ]
        )
        self.output_block = nn.Sequential(_Conv(80, 32), nn.Conv2d(32, 3, 1), nn.Sigmoid())

    def grow_from(self, smaller: "Wav2Lip") -> None:
        """Copy all stages of a generator of this size or smaller; outer stages that it lacks are unchanged."""
        stages = self.face_encoder_blocks
        pairs = [(stages[0], smaller.face_encoder_blocks[0])]
        pairs += zip(reversed(stages), reversed(smaller.face_encoder_blocks[1:]), strict=False)
        pairs += zip(self.face_decoder_blocks, smaller.face_decoder_blocks, strict=False)
        pairs += [(self.audio_encoder, smaller.audio_encoder), (self.output_block, smaller.output_block)]
        for target, source in pairs:
            target.load_state_dict(source.state_dict())

    @staticmethod
    def mask(images: torch.Tensor) -> torch.Tensor:
        """Source input of the generator: a copy of face crops (..., 3, H, W) with the lower half set to 0."""
        masked = images.clone()
        masked[..., images.shape[-2] // 2 :, :] = 0
        return masked

    def forward(
        self, masked_source: torch.Tensor, references: torch.Tensor, audio_window: torch.Tensor
    ) -> torch.Tensor:
        """Generate whole face crops of any size; they are resized to the face size of the network and back.

        Args:
            masked_source: (B, 3, H, W), RGB in [0, 1], masked by `mask`.
            references: (B/k, 3, H, W); each serves k consecutive frames of the batch.
            audio_window: (B, 1280, 5), "mel" features.

        Returns:
            (B, 3, H, W) in [0, 1], float32.
        """
        return self.generate(masked_source, self.encode_references(references), audio_window)

    def encode_references(self, references: torch.Tensor) -> torch.Tensor:
        """Returns the references unchanged: the network encodes them together with each source frame."""
        return references

    def generate(
        self, masked_source: torch.Tensor, references: torch.Tensor, audio_window: torch.Tensor
    ) -> torch.Tensor:
        """Same as `forward`."""
        references = references.repeat_interleave(len(masked_source) // len(references), dim=0)
        size = (self.config.face_size, self.config.face_size)
        faces = [F.interpolate(x, size, mode="bilinear", antialias=True) for x in (masked_source, references)]
        if self.config.bgr:
            faces = [face.flip(1) for face in faces]
        mel = audio_window[:, :, audio_window.shape[2] // 2].unflatten(1, (1, MEL_BINS, MEL_COLUMNS))
        generated = self.generate_faces(torch.cat(faces, dim=1), mel).float()
        generated = generated.flip(1) if self.config.bgr else generated
        return F.interpolate(generated, masked_source.shape[2:], mode="bilinear", antialias=True)

    def generate_faces(self, faces: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Generate square faces: the forward pass of the authors' network.

        Args:
            faces: (B, 6, S, S) in [0, 1], S = face_size; the face with its lower half set to 0, then the reference;
                BGR if the weights require it.
            mel: (B, 1, 80, 16), 0.2 s of mel spectrogram from the frame on.

        Returns:
            (B, 3, S, S) in [0, 1], in the channel order of `faces`.

        Raises:
            ValueError: a shape is not as above.
        """
        size = self.config.face_size
        if faces.shape[1:] != (6, size, size) or mel.shape != (len(faces), 1, MEL_BINS, MEL_COLUMNS):
            raise ValueError(f"expected (B, 6, {size}, {size}) and (B, 1, 80, 16), got {faces.shape}, {mel.shape}")
        skips = []
        x = faces
        for stage in self.face_encoder_blocks:
            x = stage(x)
            skips.append(x)
        x = self.audio_encoder(mel)
        for stage in self.face_decoder_blocks:
            x = torch.cat([stage(x), skips.pop()], dim=1)
        return self.output_block(x)


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU; with `residual` the input is added before the ReLU."""

    conv: type[nn.Module] = nn.Conv2d

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, residual: bool = False, **options
    ) -> None:
        super().__init__()
        options = {"padding": 1} | options
        self.conv_block = nn.Sequential(
            self.conv(in_channels, out_channels, kernel_size, **options), nn.BatchNorm2d(out_channels)
        )
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_block(x)
        return F.relu(y + x if self.residual else y)


class _UpConv(_Conv):
    """Transposed convolution, batch norm, ReLU."""

    conv = nn.ConvTranspose2d


def _stage(first: _Conv, repeats: int) -> nn.Sequential:
    """A convolution, then `repeats` residual convolutions of the same width."""
    width = first.conv_block[1].num_features
    return nn.Sequential(first, *(_Conv(width, width, residual=True) for _ in range(repeats)))
