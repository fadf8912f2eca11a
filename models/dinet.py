"""The DINet generator: it deforms reference features according to audio and head pose (paper, "Deformation part"),
then decodes them together with the source features ("Inpainting part")."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from models.ablations import AdaIN, Attention, DenseFlow
from models.adaat import AdaAT
from models.blocks import ConvBlock, ResBlock, UpBlock
from models.crop_layout import mouth_box, mouth_size_of

DEFORMATIONS = {"adaat": AdaAT, "adain": AdaIN, "attention": Attention, "flow": DenseFlow}
AUDIO_WINDOW = 5  # steps of audio features, at 25 per second, centred on the frame
AUDIO_ENCODERS = ("paper", "whitened")
# attributes of DINet, in the order in which images and audio pass them
PARTS = (
    *("source_encoder", "reference_encoder", "alignment_encoder", "audio_encoder"),
    *("appearance_before", "deformation", "appearance_after", "decoder"),
)
COMPONENTS = 192  # principal components of the audio features that the whitened audio encoder keeps


@dataclass(frozen=True)
class DINetConfig:
    """Architecture of a generator; stored in every checkpoint.

    audio_dim: dimensions of the audio features.
    num_references: number of reference frames, stacked in the channels.
    official_grid: sample as in the training of the authors' released checkpoint, which blends neighbouring channels
        and shifts the map by up to half a sample; only for weights imported from that checkpoint.
    deformation: adaat, or its replacement in one of the paper's ablations (models/ablations.py).
    inpainting: whether F_s is an input of the decoder; False in one of the paper's ablations.
    audio_encoder: "paper", or "whitened": one hidden layer on whitened features, with dropout. It overfits less to
        the speakers of a small dataset.
    """

    audio_dim: int = 29
    num_references: int = 5
    official_grid: bool = False
    deformation: str = "adaat"
    inpainting: bool = True
    audio_encoder: str = "paper"


class ReferenceFeatures(NamedTuple):
    """Encoded references, computed once per shot; both (B, 256, H/4, W/4)."""

    encoded: torch.Tensor  # F_ref, input of the alignment encoder together with F_s
    appearance: torch.Tensor  # F_ref after the first appearance blocks, to be deformed


class DINet(nn.Module):
    """Regenerates the mouth box of a face crop so that the lips follow the audio.

    Fully convolutional: heights and widths may be any multiple of 4. Images are RGB in [0, 1].
    """

    def __init__(self, config: DINetConfig) -> None:
        super().__init__()
        self.config = config
        self.source_encoder = _image_encoder(3)
        self.reference_encoder = _image_encoder(3 * config.num_references)
        self.alignment_encoder = nn.Sequential(
            ConvBlock(512, 128, 3),
            ConvBlock(128, 128, 11),
            ConvBlock(128, 128, 11),
            ConvBlock(128, 128, 3, stride=2),
            ConvBlock(128, 128, 7),
            ConvBlock(128, 128, 7),
            ConvBlock(128, 128, 3, stride=2),
            ConvBlock(128, 128, 3),
            ConvBlock(128, 128, 3, stride=2),
            ConvBlock(128, 128, 3),
            ConvBlock(128, 128, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        encoders = {"paper": _paper_audio_encoder, "whitened": _whitened_audio_encoder}
        self.audio_encoder = encoders[config.audio_encoder](config.audio_dim)
        uses_references = config.deformation != "adain"  # AdaIN transforms F_s instead
        self.appearance_before = nn.Sequential(*(ResBlock(256) for _ in range(4 if uses_references else 0)))
        options = {"official_grid": True} if config.official_grid else {}
        self.deformation = DEFORMATIONS[config.deformation](256, 256, **options)
        self.appearance_after = nn.Sequential(*(ResBlock(256) for _ in range(4)))
        self.decoder = nn.Sequential(
            ConvBlock(512 if config.inpainting else 256, 128, 3),
            UpBlock(128, 128, 3),
            ResBlock(128),
            UpBlock(128, 128, 3),
            nn.Conv2d(128, 3, 7, padding=3),
        )

    @staticmethod
    def mask(images: torch.Tensor) -> torch.Tensor:
        """Source input of the generator: a copy of face crops (..., 3, H, W) with the mouth box set to 0."""
        rows, columns = mouth_box(mouth_size_of(images.shape[-2]))
        masked = images.clone()
        masked[..., rows, columns] = 0
        return masked

    def forward(
        self, masked_source: torch.Tensor, references: torch.Tensor, audio_window: torch.Tensor
    ) -> torch.Tensor:
        """Encode the references and generate face crops.

        Args:
            masked_source: (B, 3, H, W), the mouth box set to 0 (`mask`).
            references: (B/k, 3N, H, W), the N reference frames stacked in the channels; each serves k consecutive
                frames of the batch.
            audio_window: (B, D, 5), audio features around each frame.

        Returns:
            (B, 3, H, W) in [0, 1], float32, the whole face crop.

        Raises:
            ValueError: a shape is not as above.
        """
        return self.generate(masked_source, self.encode_references(references), audio_window)

    def encode_references(self, references: torch.Tensor) -> ReferenceFeatures:
        """Encode stacked references (B, 3N, H, W), once for any number of frames of the same shot."""
        _check_image("references", references, 3 * self.config.num_references)
        encoded = self.reference_encoder(references)
        return ReferenceFeatures(encoded, self.appearance_before(encoded))

    def generate(
        self, masked_source: torch.Tensor, references: ReferenceFeatures, audio_window: torch.Tensor
    ) -> torch.Tensor:
        """`forward` with encoded references (B/k, …); each serves k consecutive frames of the batch."""
        _check_image("masked_source", masked_source, 3)
        batch, _, height, width = masked_source.shape
        num_references = references.encoded.shape[0]
        if num_references == 0 or batch % num_references:
            raise ValueError(f"references: expected a batch that divides {batch}, got {num_references}")
        if references.encoded.shape[2:] != (height // 4, width // 4):
            found = tuple(4 * size for size in references.encoded.shape[2:])
            raise ValueError(f"references: expected the source's size {(height, width)}, got {found}")
        if audio_window.shape != (batch, self.config.audio_dim, AUDIO_WINDOW):
            expected = (batch, self.config.audio_dim, AUDIO_WINDOW)
            raise ValueError(f"audio_window: expected {expected}, got {tuple(audio_window.shape)}")

        references = ReferenceFeatures(*(_repeat(part, batch // num_references) for part in references))
        source = self.source_encoder(masked_source)
        code = torch.cat(self.codes(source, references, audio_window), dim=1)
        decoded = self.appearance_after(self.deform(source, references, code))
        if self.config.inpainting:
            decoded = torch.cat([source, decoded], dim=1)
        # In float32 even under autocast: bfloat16 has only 128 levels between 0.5 and 1.
        return self.decoder(decoded).float().sigmoid()

    def codes(
        self, source: torch.Tensor, references: ReferenceFeatures, audio_window: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Alignment code and audio code, (B, 128) each, from F_s (B, 256, H/4, W/4), references and audio."""
        alignment = self.alignment_encoder(torch.cat([source, references.encoded], dim=1))
        return alignment, self.audio_encoder(audio_window)

    def deform(self, source: torch.Tensor, references: ReferenceFeatures, code: torch.Tensor) -> torch.Tensor:
        """F_d (B, 256, H/4, W/4): the appearance features, warped according to the concatenated code (B, 256)."""
        return self.deformation(references.appearance, code, source)


class Whitening(nn.Module):
    """Projection of audio features onto principal components of mean 0 and variance 1: (B, D, T) -> (B, C, T).

    `fit` sets it; before, it keeps the first C features as they are. It is not trained, but saved with the weights.
    """

    def __init__(self, audio_dim: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(audio_dim, 1))
        self.register_buffer("matrix", torch.eye(components, audio_dim))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.matrix @ (features - self.mean)

    def fit(self, features: torch.Tensor) -> None:
        """Set mean and components to those of audio features (N, D), sorted by decreasing variance."""
        features = features.cpu().double()  # Apple's GPUs have no double precision
        self.mean.copy_(features.mean(dim=0)[:, None])
        variances, vectors = torch.linalg.eigh(features.T.cov())
        components = len(self.matrix)
        scales = variances.flip(0)[:components].clamp(min=1e-8).rsqrt()
        self.matrix.copy_(scales[:, None] * vectors.flip(1)[:, :components].T)


def _paper_audio_encoder(audio_dim: int) -> nn.Sequential:
    """(B, audio_dim, 5) -> (B, 128)."""
    return nn.Sequential(
        ConvBlock(audio_dim, 128, 5, dims=1),
        ResBlock(128, dims=1),
        ConvBlock(128, 128, 3, stride=2, dims=1),
        ResBlock(128, dims=1),
        ConvBlock(128, 128, 3, stride=2, dims=1),
        ConvBlock(128, 128, 3, dims=1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )


def _whitened_audio_encoder(audio_dim: int) -> nn.Sequential:
    """(B, audio_dim, 5) -> (B, 128)."""
    components = min(COMPONENTS, audio_dim)
    return nn.Sequential(
        Whitening(audio_dim, components),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(components * AUDIO_WINDOW, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, 128),
    )


def _image_encoder(in_channels: int) -> nn.Sequential:
    """(B, in_channels, H, W) -> (B, 256, H/4, W/4)."""
    return nn.Sequential(
        ConvBlock(in_channels, 64, 7), ConvBlock(64, 128, 3, stride=2), ConvBlock(128, 256, 3, stride=2)
    )


def _repeat(features: torch.Tensor, times: int) -> torch.Tensor:
    """(B, C, H, W) -> (B·times, C, H, W), each entry repeated `times` times in a row; a view if B is 1."""
    return features[:, None].expand(-1, times, -1, -1, -1).flatten(0, 1)


def _check_image(name: str, image: torch.Tensor, channels: int) -> None:
    if image.ndim != 4 or image.shape[1] != channels or image.shape[2] % 4 or image.shape[3] % 4:
        found = tuple(image.shape)
        raise ValueError(f"{name}: expected (B, {channels}, H, W), H and W multiples of 4, got {found}")
