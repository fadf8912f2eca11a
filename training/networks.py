"""The networks of a generator's training before its first step: new, or from checkpoints that must fit."""

from dataclasses import fields, replace
from pathlib import Path

import torch

from configs.schema import TrainConfig
from data_processing.audio.features import FEATURE_DIMS
from data_processing.face.lips import LIP_FEATURES, LIPS
from models.checkpoint import SYNCNET, LoadedModel, load_model
from models.dinet import DINet, DINetConfig
from models.wav2lip import Wav2Lip, Wav2LipConfig
from utils.errors import ParameterError


def generator_config(config: TrainConfig) -> DINetConfig | Wav2LipConfig:
    """The architecture that a configuration asks for."""
    if config.generator != "dinet":
        return Wav2LipConfig(int(config.generator.removeprefix("wav2lip_")))
    return DINetConfig(
        LIP_FEATURES if config.audio_features == LIPS else FEATURE_DIMS[config.audio_features],
        config.num_references,
        deformation=config.deformation,
        inpainting=config.inpainting,
        audio_encoder=config.audio_encoder,
    )


def new_generator(config: TrainConfig) -> DINet | Wav2Lip:
    """A generator with random weights."""
    architecture = generator_config(config)
    return DINet(architecture) if isinstance(architecture, DINetConfig) else Wav2Lip(architecture)


def check_initial_generator(config: TrainConfig, found: DINetConfig | Wav2LipConfig, found_features: str) -> None:
    """Check that a run can start from a generator of this architecture and these audio features.

    Raises:
        ParameterError: it cannot.
    """
    expected = generator_config(config)
    features = LIPS if config.audio_warmup_steps else config.audio_features
    to_lips = config.audio_features == LIPS
    adapted = found
    if isinstance(found, DINetConfig) and isinstance(expected, DINetConfig):
        adapted = replace(found, audio_dim=expected.audio_dim, audio_encoder=expected.audio_encoder)
    elif isinstance(found, Wav2LipConfig) and isinstance(expected, Wav2LipConfig):
        adapted = replace(found, face_size=max(found.face_size, expected.face_size))
    if adapted != expected or not (found_features == features or to_lips):
        differing = _differences(expected, adapted)
        if not (found_features == features or to_lips):
            differing.append((f"audio_features {features}", f"audio_features {found_features}"))
        wanted, other = map(", ".join, zip(*differing, strict=True))
        raise ParameterError("init_from", f"{config.init_from}: expected {wanted}, found {other}")


def _differences(
    expected: DINetConfig | Wav2LipConfig, found: DINetConfig | Wav2LipConfig
) -> list[tuple[str, str]]:
    """What two architectures have instead of each other: names and values of fields."""
    if type(expected) is not type(found):
        return [(type(expected).__name__, type(found).__name__)]
    values = ((field.name, getattr(expected, field.name), getattr(found, field.name)) for field in fields(expected))
    return [(f"{name} {wanted}", f"{name} {other}") for name, wanted, other in values if wanted != other]


def load_initial_generator(config: TrainConfig, generator: DINet | Wav2Lip) -> DINet | Wav2Lip:
    """The generator of `init_from`.

    If its audio features differ, it gets the new audio encoder of `generator`; otherwise it keeps its own, of
    whatever kind. A larger Wav2Lip takes over the stages that both have.

    Raises:
        ParameterError: it does not fit the configuration.
        CheckpointError: it cannot be read.
    """
    initial = load_model(Path(config.init_from))
    check_initial_generator(config, initial.model.config, initial.audio_features)
    if isinstance(generator, Wav2Lip):
        generator.grow_from(initial.model)
        return generator
    if initial.audio_features != config.audio_features:
        initial.model.audio_encoder = generator.audio_encoder
        initial.model.config = generator.config
    return initial.model.train()


def check_syncnet(config: TrainConfig, mouth_size: int, audio_features: str) -> None:
    """Check that a SyncNet of this mouth size and these audio features can score the crops of a run.

    Raises:
        ParameterError: it cannot.
    """
    if audio_features != config.audio_features or mouth_size > config.mouth_size:
        raise ParameterError(
            "syncnet",
            f"{config.syncnet}: expected a SyncNet for mouths of at most {config.mouth_size} pixels and "
            f"{config.audio_features} features, found {mouth_size} and {audio_features}",
        )


def load_frozen_syncnet(config: TrainConfig, device: torch.device) -> LoadedModel:
    """The SyncNet of the sync loss.

    Raises:
        ParameterError: it does not fit the configuration.
        CheckpointError: it cannot be read.
    """
    loaded = load_model(config.syncnet, device, kinds=SYNCNET)
    check_syncnet(config, loaded.mouth_size, loaded.audio_features)
    loaded.model.requires_grad_(False)
    return loaded
