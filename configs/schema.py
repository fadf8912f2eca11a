"""The typed schema of training configurations: a base file, a recipe that states its differences, flags."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from data_processing.audio.features import FEATURE_DIMS
from data_processing.face.lips import LIPS
from models.dinet import DEFORMATIONS
from models.syncnet import CLIP_LENGTH
from models.wav2lip import DOUBLINGS
from utils.errors import UserError

GENERATOR_NAMES = ("dinet", *(f"wav2lip_{size}" for size in DOUBLINGS))
LOSSES = ("pixel", "lips", "perceptual", "adversarial", "clip_adversarial", "sync")


@dataclass(frozen=True)
class TrainConfig:
    """One training run of the generator. Every field must be set by base.yaml or the recipe; others are refused.

    mouth_size: S, side of the mouth box in crop pixels; num_references: reference frames a sample.
    generator: dinet, or the baseline wav2lip_96, wav2lip_192 or wav2lip_384, by the size of its faces.
    deformation, inpainting: of dinet (models.dinet.DINetConfig); others than adaat and true are ablations.
    audio_features: what the generator hears; or lips: it is driven by the real lips' movements, to be taught to
        hear in a next run.
    speaker_sampling_exponent: how much long recordings of one person count (data_processing.dataset.TrainingBatches).
    clip_length: consecutive frames a sample: 1 in the frame stage, 5 in the clip stage.
    freeze_bn: the generator's batch norms keep the statistics of `init_from`: where a batch holds few people, as
        in the clip stage, its own would make everybody look like these few.
    audio_warmup_steps: steps for which the audio encoder alone learns, before anything else, to give the codes that
        the lips gave in `init_from`, which must be a generator driven by lips.
    syncnet: checkpoint of train_syncnet.py, the judge of the sync loss, or null.
    sync_target: what the generated mouths' score is drawn to: one (paper), or real, the score of the real mouths.
    learning_rate: Adam's, reached after warmup_steps and falling along a cosine to 0 at max_steps.
    loss_weights: weight of each loss, 0 leaves it out; the keys are the names in the log.
    adversarial_start: step from which the adversarial loss acts and the discriminator is trained.
    precision: bf16 (autocast) or fp32; channels_last: memory layout of the networks; compile: have
        torch.compile make the generator faster (not on every machine; it takes minutes to begin).
    init_from: release checkpoint whose weights to start from, or null.
    validate_every, save_every, image_every: steps; val_frames: frames drawn from each held-out clip.
    """

    seed: int
    mouth_size: int
    num_references: int
    generator: str
    deformation: str
    inpainting: bool
    audio_features: str
    speaker_sampling_exponent: float
    clip_length: int
    freeze_bn: bool
    audio_warmup_steps: int
    syncnet: str | None
    sync_target: str
    batch_size: int
    max_steps: int
    learning_rate: float
    warmup_steps: int
    adam_betas: list[float]
    loss_weights: dict[str, float]
    adversarial_start: int
    precision: str
    channels_last: bool
    compile: bool
    init_from: str | None
    log_every: int
    validate_every: int
    image_every: int
    save_every: int
    val_frames: int


@dataclass(frozen=True)
class SyncNetConfig:
    """One training run of SyncNet; as TrainConfig, over base_syncnet.yaml.

    num_negatives: how many each moment is compared with; together they weigh as much as its own sound.
    negative_gap: frames, at least, between a moment and a wrong sound taken from the same clip.
    contrast_weight: weight of telling, by their codes alone, a moment's own sound among the wrong ones.
    shape_warmup_steps: steps for which both encoders learn mouth shapes, through heads that are thrown away, before
    they are asked whether these agree; not with init_from, which has learned them.
    weight_decay: AdamW's.
    """

    seed: int
    mouth_size: int
    audio_features: str
    speaker_sampling_exponent: float
    num_negatives: int
    negative_gap: int
    contrast_weight: float
    shape_warmup_steps: int
    batch_size: int
    max_steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    precision: str
    channels_last: bool
    init_from: str | None
    log_every: int
    validate_every: int
    save_every: int


FOLDER = Path(__file__).parent
BASES = {TrainConfig: FOLDER / "base.yaml", SyncNetConfig: FOLDER / "base_syncnet.yaml"}
MAY_BE_ZERO = ("seed", "warmup_steps", "audio_warmup_steps", "shape_warmup_steps", "adversarial_start")
Config = TypeVar("Config", TrainConfig, SyncNetConfig)


def load_config(
    paths: Path | list[Path], overrides: dict[str, Any] | None = None, kind: type[Config] = TrainConfig
) -> Config:
    """Read a recipe, or several of which later ones go over earlier ones, over the base file of its kind and under
    `overrides` (None values left out); loss weights merge one by one.

    Raises:
        UserError: unreadable YAML, unknown or missing keys, wrong types, values out of range; all named.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    values = _read(BASES[kind])
    for recipe in map(_read, paths):
        before, weights = values.get("loss_weights"), recipe.get("loss_weights")
        values |= recipe
        if isinstance(before, dict) and isinstance(weights, dict):
            values["loss_weights"] = before | weights
    values |= {k: v for k, v in (overrides or {}).items() if v is not None}
    path = " ".join(map(str, paths))
    types = get_type_hints(kind)
    unknown = sorted(map(str, values.keys() - types.keys()))
    missing = sorted(types.keys() - values.keys())
    if unknown or missing:
        raise UserError(f"--config {path}: unknown keys: {unknown or 'none'}; missing keys: {missing or 'none'}")
    for name, value in values.items():
        values[name] = _checked(path, name, value, types[name])
    config = kind(**values)
    _check_ranges(path, config)
    return config


def dump_config(config: TrainConfig | SyncNetConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(f"--config {path}: expected `key: value` lines, found {type(values).__name__}")
    return values or {}


def _checked(path: str, name: str, value: Any, kind: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if get_origin(kind) is UnionType:
        fits = any(isinstance(value, option) for option in get_args(kind))
    elif get_origin(kind) is list:
        fits = isinstance(value, list) and all(type(item) in (int, float) for item in value)
    elif get_origin(kind) is dict:
        fits = isinstance(value, dict) and all(type(item) in (int, float) for item in value.values())
    else:
        fits = type(value) is kind
    if not fits:
        expected = kind.__name__ if isinstance(kind, type) else kind
        raise UserError(f"--config {path}: {name}: expected {expected}, found {value!r}")
    return value


def _check_ranges(path: str, config: TrainConfig | SyncNetConfig) -> None:
    known = [*FEATURE_DIMS, LIPS] if isinstance(config, TrainConfig) else [*FEATURE_DIMS]
    checks = {
        "mouth_size": (config.mouth_size > 0 and config.mouth_size % 32 == 0, "a multiple of 32"),
        "learning_rate": (0 < config.learning_rate < math.inf, "a number above 0"),
        "audio_features": (config.audio_features in known, f"one of {', '.join(known)}"),
        "precision": (config.precision in ("bf16", "fp32"), "bf16 or fp32"),
    }
    if isinstance(config, SyncNetConfig):
        checks["contrast_weight"] = (0 <= config.contrast_weight < math.inf, "0 or more")
    if isinstance(config, TrainConfig):
        weights = config.loss_weights
        checks |= {
            "loss_weights": (
                set(weights) == set(LOSSES)
                and all(0 <= weight < math.inf for weight in weights.values())
                and weights["pixel"] + weights["perceptual"] > 0,
                f"the keys {', '.join(LOSSES)}, none below 0, and pixel or perceptual above it",
            ),
            "adam_betas": (
                len(config.adam_betas) == 2 and all(0 <= beta < 1 for beta in config.adam_betas),
                "two numbers from 0 to below 1",
            ),
            "generator": (config.generator in GENERATOR_NAMES, f"one of {', '.join(GENERATOR_NAMES)}"),
            "deformation": (config.deformation in DEFORMATIONS, f"one of {', '.join(DEFORMATIONS)}"),
            "sync_target": (config.sync_target in ("one", "real"), "one or real"),
        }
    for field in fields(config):
        if field.type is int:
            lowest = 0 if field.name in MAY_BE_ZERO else 1
            checks.setdefault(field.name, (getattr(config, field.name) >= lowest, f"{lowest} or more"))
    for name, (good, expected) in checks.items():
        if not good:
            raise UserError(f"--config {path}: {name}: expected {expected}, found {getattr(config, name)!r}")
    if isinstance(config, TrainConfig):
        _check_together(path, config)


def _check_together(path: str, config: TrainConfig) -> None:
    """What one value asks of another."""
    weights = config.loss_weights
    if config.generator != "dinet":
        wanted = {
            "num_references": 1,
            "audio_features": "mel",
            "deformation": "adaat",
            "inpainting": True,
            "audio_warmup_steps": 0,
        }
        for name, value in wanted.items():
            if (found := getattr(config, name)) != value:
                raise UserError(f"--config {path}: {name}: expected {value} with {config.generator}, found {found}")
    if config.mouth_size < 64 and (weights["adversarial"] or weights["clip_adversarial"]):
        raise UserError(
            f"--config {path}: mouth_size: expected at least 64 with an adversarial loss (its discriminator takes "
            f"no smaller crops), found {config.mouth_size}"
        )
    if config.clip_length != CLIP_LENGTH and (weights["clip_adversarial"] or weights["sync"]):
        raise UserError(
            f"--config {path}: clip_length: expected {CLIP_LENGTH} with the clip discriminator or the sync loss, "
            f"found {config.clip_length}"
        )
    if weights["sync"] and not config.syncnet:
        raise UserError(
            f"--config {path}: syncnet: expected a checkpoint of train_syncnet.py with the sync loss, found null"
        )
