"""The typed schema of training configurations, and how they are read: base file, recipes, overrides."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from data_processing.audio.features import FEATURE_DIMS
from data_processing.face.lips import LIPS
from models.dinet import AUDIO_ENCODERS, DEFORMATIONS, PARTS
from models.syncnet import CLIP_LENGTH
from models.wav2lip import DOUBLINGS
from utils.errors import ConfigError, ParameterError, UserError, error_reason

GENERATOR_NAMES = ("dinet", *(f"wav2lip_{size}" for size in DOUBLINGS))
LOSSES = ("pixel", "lips", "perceptual", "adversarial", "clip_adversarial", "sync")


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of train_dinet.py. base.yaml sets every field; a recipe overrides some of them.

    seed: of the initial weights and of the batches.
    mouth_size: S, side of the mouth box in crop pixels.
    num_references: reference frames per sample.
    generator: dinet, or one of the baselines wav2lip_96, wav2lip_192 and wav2lip_384, named after their input size.
    deformation, inpainting: variants of DINet (models.dinet.DINetConfig). All but adaat and true are ablations.
    audio_features: kind of audio features; or lips, to drive the generator with lip features of the target frame.
        Its audio encoder is then replaced in a later run.
    audio_encoder: paper, or whitened (models.dinet.DINetConfig), of a generator that does not take over that of
        `init_from`.
    speaker_sampling_exponent: a speaker with n frames is sampled with probability ∝ n ** exponent.
    clip_length: consecutive frames per sample: 1 in the frame stage, 5 in the clip stage.
    references_per_frame: whether each frame of a clip has its own reference frames.
    augment: change brightness and contrast of the samples slightly, and mirror half of them.
    crop_scale_jitter: enlarge the crop of the target and of each reference frame by up to this fraction.
    freeze_bn: keep the batch norm statistics of `init_from`. With few identities per batch, as in the clip stage,
        the generator would overfit to their statistics.
    audio_warmup_steps: steps that first train only the audio encoder, to reproduce the codes of the lip encoder of
        `init_from`, which must be a generator driven by lip features. The encoder of the step with the lowest error
        on held-out speakers is kept.
    frozen: parts of a DINet (models.dinet.PARTS) that keep the weights and batch norm statistics of `init_from`, or
        of the warm-up if it is the audio encoder.
    syncnet: checkpoint of train_syncnet.py for the sync loss, or null.
    sync_target: target of the sync score of generated frames: one (paper), or real, the score of the real frames.
    batch_size: samples per step, over all processes. A sample has `clip_length` frames.
    grad_accum_steps: forward passes among which the samples of a step are split, to save memory. Batch norms see
        the samples of one pass (over all processes).
    max_steps: number of steps.
    learning_rate: of Adam, after a linear warm-up over `warmup_steps`.
    schedule: cosine, from the learning rate to 0 at `max_steps`, or constant.
    adam_betas: β₁ and β₂ of Adam.
    loss_weights: weight of each loss; 0 disables it. The keys are the names in the log.
    adversarial_start: step from which the adversarial losses are used and the discriminators are trained.
    precision: bf16 (autocast) or fp32.
    channels_last: memory layout of the networks.
    compile: compile the generator with torch.compile. Takes minutes at the start; not faster on every machine.
    init_from: checkpoint whose weights training starts from, or null.
    ema: decay per step of an exponential moving average of the generator, which is then validated and saved; 0 for
        none.
    log_every, validate_every, image_every, save_every: intervals in steps.
    checkpoint_every, keep_checkpoints: interval in steps of checkpoints that are numbered, and how many are kept.
    val_frames: frames generated per held-out clip in a validation.
    """

    seed: int
    mouth_size: int
    num_references: int
    generator: str
    deformation: str
    inpainting: bool
    audio_features: str
    audio_encoder: str
    speaker_sampling_exponent: float
    clip_length: int
    references_per_frame: bool
    augment: bool
    crop_scale_jitter: float
    freeze_bn: bool
    audio_warmup_steps: int
    frozen: list[str]
    syncnet: str | None
    sync_target: str
    batch_size: int
    grad_accum_steps: int
    max_steps: int
    learning_rate: float
    warmup_steps: int
    schedule: str
    adam_betas: list[float]
    loss_weights: dict[str, float]
    adversarial_start: int
    precision: str
    channels_last: bool
    compile: bool
    ema: float
    init_from: str | None
    log_every: int
    validate_every: int
    image_every: int
    save_every: int
    checkpoint_every: int
    keep_checkpoints: int
    val_frames: int


@dataclass(frozen=True)
class SyncNetConfig:
    """Configuration of train_syncnet.py, over base_syncnet.yaml. Other fields are as in TrainConfig.

    num_negatives: mismatched audio windows per mouth window; together they weigh as much as the matched one.
    negative_gap: minimum distance, in frames, of a negative from the same clip.
    contrast_weight: weight of the contrastive loss, which classifies the matched audio among the negatives by the
        similarity of the codes.
    shape_warmup_steps: steps that first train both encoders to predict lip shapes through a temporary linear head,
        before they are trained to compare them. Skipped with `init_from`.
    weight_decay: of AdamW.
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
    grad_accum_steps: int
    max_steps: int
    learning_rate: float
    warmup_steps: int
    schedule: str
    weight_decay: float
    precision: str
    channels_last: bool
    init_from: str | None
    log_every: int
    validate_every: int
    save_every: int
    checkpoint_every: int
    keep_checkpoints: int


FOLDER = Path(__file__).parent
BASES = {TrainConfig: FOLDER / "base.yaml", SyncNetConfig: FOLDER / "base_syncnet.yaml"}
# former names of keys, which old recipes and the config.yaml of old runs use
RENAMED = {
    "person_power": "speaker_sampling_exponent",
    "wrong_sounds": "num_negatives",
    "frozen_norms": "freeze_bn",
}
# keys that are gone: the value with which they had no effect, and the key that replaces them
REMOVED = {"audio_learning_rate_factor": (1.0, "frozen")}
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    str | None: "a path or null",
    list[float]: "a list of numbers",
    list[str]: "a list of names",
    dict[str, float]: "a number for each name",
}
MAY_BE_ZERO = ("seed", "warmup_steps", "audio_warmup_steps", "shape_warmup_steps", "adversarial_start")
# what a Wav2Lip generator requires of other fields
WAV2LIP_VALUES = {
    "num_references": 1,
    "audio_features": "mel",
    "audio_encoder": "paper",
    "deformation": "adaat",
    "inpainting": True,
    "audio_warmup_steps": 0,
    "frozen": [],
}
Config = TypeVar("Config", TrainConfig, SyncNetConfig)


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does; YAML 1.1 requires 1.0e-4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def load_config(
    paths: Path | list[Path], overrides: dict[str, Any] | None = None, kind: type[Config] = TrainConfig
) -> Config:
    """Read a configuration.

    Args:
        paths: one or more recipes (YAML). Each overrides those before it, and the base file of `kind`. Loss weights
            are overridden one by one. Keys are also accepted under their former names (RENAMED).
        overrides: values that override the recipes; None values are ignored.
        kind: TrainConfig or SyncNetConfig.

    Raises:
        ConfigError: a recipe cannot be read, has unknown, removed or missing keys, or values of wrong types or out
            of range.
        ParameterError: one of `overrides` is not a key, has a wrong type or is out of range.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    origins: dict[str, Path | None] = {}  # the recipe that sets a key; None for an override
    for path in [BASES[kind], *paths]:
        recipe = _read(path, types)
        if path in paths:
            origins |= dict.fromkeys(recipe, path)
        if "loss_weights" in values and "loss_weights" in recipe:
            recipe["loss_weights"] = values["loss_weights"] | recipe["loss_weights"]
        values |= recipe
    for name, value in (overrides or {}).items():
        if value is None:
            continue
        if name not in types:
            raise ParameterError(name, f"not a key of {kind.__name__}")
        try:
            values[name] = _converted(value, types[name])
        except TypeError as error:
            raise ParameterError(name, str(error)) from None
        origins[name] = None
    if missing := sorted(types.keys() - values.keys()):
        raise ConfigError(paths[-1], f"missing keys: {missing}; {BASES[kind]} does not set them either")
    config = kind(**values)
    for names, reason in _problems(config):
        raise _range_error(names, reason, origins, paths)
    return config


def dump_config(config: TrainConfig | SyncNetConfig) -> str:
    """The resolved configuration as YAML, which `load_config` reads."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def _read(path: Path, types: dict[str, Any]) -> dict[str, Any]:
    """Keys and values of a file, under their present names and with the types of the schema."""
    try:
        values = yaml.load(path.read_text("utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error_reason(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(path, f"not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(path, f"expected `key: value` lines, found {type(values).__name__}")
    for old, new in RENAMED.items():
        if old in values and new in types:
            if new in values:
                raise ConfigError(path, f"{old} is the former name of {new}; remove one of them")
            values[new] = values.pop(old)
    for old, (neutral, new) in REMOVED.items():
        if new in types and values.pop(old, neutral) != neutral:
            reason = (
                f"{old} is gone; start a new run from the weights of this one (init_from), with {new} if wanted"
            )
            raise ConfigError(path, reason)
    if unknown := sorted(map(str, values.keys() - types.keys())):
        raise ConfigError(path, f"unknown keys: {unknown}")
    for name, value in values.items():
        try:
            values[name] = _converted(value, types[name])
        except TypeError as error:
            raise ConfigError(path, f"{name}: {error}") from None
    return values


def _converted(value: Any, kind: Any) -> Any:
    """The value; integers become floats where these are expected, and whole floats (1e5) integers.

    Raises TypeError.
    """
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if get_origin(kind) is UnionType:
        valid = any(isinstance(value, option) for option in get_args(kind))
    elif get_origin(kind) is list:
        items = (str,) if kind == list[str] else (int, float)
        valid = isinstance(value, list) and all(type(item) in items for item in value)
    elif get_origin(kind) is dict:
        valid = isinstance(value, dict) and all(type(item) in (int, float) for item in value.values())
    else:
        valid = type(value) is kind
    if not valid:
        raise TypeError(f"expected {TYPE_NAMES.get(kind, kind)}, found {value!r}")
    return value


def _range_error(
    names: tuple[str, ...], reason: str, origins: dict[str, Path | None], paths: list[Path]
) -> UserError:
    """The error for a value of `names[0]` that is not valid, or not valid together with the other names.

    It names the override or recipe that sets the first of `names` that the base file does not set.
    """
    origin = next((origins[name] for name in names if name in origins), paths[0])
    if origin is None:
        at_fault = next(name for name in names if name in origins)
        return ParameterError(at_fault, reason if at_fault == names[0] else f"{names[0]}: {reason}")
    return ConfigError(origin, f"{names[0]}: {reason}")


def _problems(config: TrainConfig | SyncNetConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Values that are not valid: the names of the keys involved, the one with the value first, and the reason."""
    for name, (valid, expected) in _ranges(config).items():
        if not valid:
            yield (name,), f"expected {expected}, found {getattr(config, name)!r}"
    if config.grad_accum_steps > config.batch_size:
        reason = f"expected at most the batch_size of {config.batch_size}, found {config.grad_accum_steps}"
        yield ("grad_accum_steps", "batch_size"), reason
    if isinstance(config, TrainConfig):
        yield from _conflicts(config)


def _ranges(config: TrainConfig | SyncNetConfig) -> dict[str, tuple[bool, str]]:
    """For each key with a restricted range, whether its value is valid, and what is expected."""
    features = [*FEATURE_DIMS, LIPS] if isinstance(config, TrainConfig) else [*FEATURE_DIMS]
    ranges = {
        "mouth_size": (config.mouth_size > 0 and config.mouth_size % 32 == 0, "a multiple of 32"),
        "learning_rate": (0 < config.learning_rate < math.inf, "a number above 0"),
        "audio_features": (config.audio_features in features, f"one of {', '.join(features)}"),
        "precision": (config.precision in ("bf16", "fp32"), "bf16 or fp32"),
        "schedule": (config.schedule in ("cosine", "constant"), "cosine or constant"),
        "speaker_sampling_exponent": (math.isfinite(config.speaker_sampling_exponent), "a finite number"),
    }
    if isinstance(config, SyncNetConfig):
        ranges["weight_decay"] = (0 <= config.weight_decay < math.inf, "0 or more")
        ranges["contrast_weight"] = (0 <= config.contrast_weight < math.inf, "0 or more")
    else:
        weights = config.loss_weights
        ranges |= {
            "loss_weights": (
                set(weights) == set(LOSSES)
                and all(0 <= weight < math.inf for weight in weights.values())
                and weights["pixel"] + weights["perceptual"] > 0,
                f"the keys {', '.join(LOSSES)}, no weight below 0, and pixel or perceptual above 0",
            ),
            "adam_betas": (
                len(config.adam_betas) == 2 and all(0 <= beta < 1 for beta in config.adam_betas),
                "two numbers from 0 to below 1",
            ),
            "generator": (config.generator in GENERATOR_NAMES, f"one of {', '.join(GENERATOR_NAMES)}"),
            "audio_encoder": (config.audio_encoder in AUDIO_ENCODERS, f"one of {', '.join(AUDIO_ENCODERS)}"),
            "frozen": (set(config.frozen) < set(PARTS), f"some of {', '.join(PARTS)}"),
            "ema": (0 <= config.ema < 1, "a number from 0 to below 1"),
            "crop_scale_jitter": (0 <= config.crop_scale_jitter <= 0.5, "a number from 0 to 0.5"),
            "deformation": (config.deformation in DEFORMATIONS, f"one of {', '.join(DEFORMATIONS)}"),
            "sync_target": (config.sync_target in ("one", "real"), "one or real"),
        }
    for field in fields(config):
        if field.type is int:
            lowest = 0 if field.name in MAY_BE_ZERO else 1
            ranges.setdefault(field.name, (getattr(config, field.name) >= lowest, f"{lowest} or more"))
    return ranges


def _conflicts(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Values that are not valid in combination; see `_problems`."""
    weights = config.loss_weights
    if config.generator != "dinet":
        for name, expected in WAV2LIP_VALUES.items():
            value = getattr(config, name)
            if value != expected:
                yield (name, "generator"), f"expected {expected} with {config.generator}, found {value}"
    if config.mouth_size < 64 and (weights["adversarial"] or weights["clip_adversarial"]):
        reason = "expected at least 64 with an adversarial loss (its discriminator needs crops of that size)"
        yield ("mouth_size", "loss_weights"), f"{reason}, found {config.mouth_size}"
    if config.clip_length != CLIP_LENGTH and (weights["clip_adversarial"] or weights["sync"]):
        reason = f"expected {CLIP_LENGTH} with the clip discriminator or the sync loss, found {config.clip_length}"
        yield ("clip_length", "loss_weights"), reason
    if weights["sync"] and not config.syncnet:
        reason = "expected a checkpoint of train_syncnet.py with the sync loss, found null"
        yield ("syncnet", "loss_weights"), reason
