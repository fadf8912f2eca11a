"""The one place that saves and loads networks and training states.

A released model is one safetensors file with the model's configuration inside, so that loading needs nothing
else; `load_model` also takes the authors' checkpoint. A training state is a file of `torch.save`, read
without running any code in it. Every file is written under another name and moved into place when complete.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from models.dinet import DINet, DINetConfig
from models.syncnet import SyncNet
from models.wav2lip import Wav2Lip, Wav2LipConfig
from utils.errors import UserError
from utils.files import write_atomically

# Where the modules of DINet are called otherwise in the authors' checkpoint: ours, theirs.
OFFICIAL_NAMES = {
    "source_encoder.": "source_in_conv.",
    "reference_encoder.": "ref_in_conv.",
    "alignment_encoder.": "trans_conv.",
    "appearance_before.": "appearance_conv_list.0.",
    "appearance_after.": "appearance_conv_list.1.",
    "deformation.common.": "adaAT.commn_linear.0.",
    "deformation.scale.": "adaAT.scale.0.",
    "deformation.rotation.": "adaAT.rotation.0.",
    "deformation.translation.": "adaAT.translation.0.",
    "decoder.": "out_conv.",
}


SCALE = ":scale"  # a tensor so called multiplies the one before the colon

# Kinds of released models, as they are marked in their files: what messages call them, and how one is made.
KINDS = {
    "dinet": ("a DINet generator", lambda config: DINet(DINetConfig(**config))),
    "wav2lip": ("a Wav2Lip generator", lambda config: Wav2Lip(Wav2LipConfig(**config))),
    "syncnet": ("a SyncNet", lambda config: SyncNet(**config)),
}
GENERATORS, SYNCNET = ("dinet", "wav2lip"), ("syncnet",)


@dataclass(frozen=True)
class LoadedModel:
    """A network and what has to be known to use it.

    model: in float32, in evaluation mode.
    audio_features: name of the audio features it was trained with.
    mouth_size: S in pixels: side of the mouth box, in face crops of 13S/8 × 5S/4.
    info: notes on the training.
    """

    model: DINet | Wav2Lip | SyncNet
    audio_features: str
    mouth_size: int
    info: dict[str, Any]


def save_model(
    path: str | Path,
    model: DINet | Wav2Lip | SyncNet,
    *,
    audio_features: str,
    mouth_size: int,
    info: dict[str, Any],
    bits: int = 16,
) -> None:
    """Save a model for inference as one safetensors file; the arguments are the fields of `LoadedModel`.

    `info` must be JSON. Kernels are stored in 32 bits, 16, or 8: then as whole numbers with a scale for each output
    channel. Raises UserError if the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # Biases and batch norms are next to nothing in size, and variances can leave the range of float16.
    kernels = {name: tensor for name, tensor in tensors.items() if tensor.ndim > 1}
    if bits == 16:
        tensors |= {name: kernel.half() for name, kernel in kernels.items()}
    elif bits == 8:
        for name, kernel in kernels.items():
            scale = kernel.abs().amax(dim=tuple(range(1, kernel.ndim)), keepdim=True).clamp(min=1e-12) / 127
            tensors |= {name: (kernel / scale).round().to(torch.int8), name + SCALE: scale}
    kind = type(model).__name__.lower()
    description = {
        "config": {"audio_dim": model.audio_dim} if kind == "syncnet" else asdict(model.config),
        "audio_features": audio_features,
        "mouth_size": mouth_size,
        "info": info,
    }
    content = safetensors.torch.save(tensors, metadata={kind: json.dumps(description)})
    write_atomically(Path(path), lambda file: file.write(content))


def load_model(
    path: str | Path, device: str | torch.device = "cpu", kinds: tuple[str, ...] = GENERATORS
) -> LoadedModel:
    """Load a model of one of `kinds` saved by `save_model` onto `device`.

    As generators the released checkpoints (`.pth`) of DINet's and of Wav2Lip's authors are taken too.

    Raises UserError if the file is missing or is neither, or its tensors are not exactly those of the model.
    """
    path = Path(path)
    # A safetensors file is the length of its header in 8 bytes, then the header in JSON.
    is_safetensors = _read_magic(path)[8:9] == b"{"
    if not is_safetensors and kinds != GENERATORS:
        raise UserError(f"{path}: expected {KINDS[kinds[0]][0]} (.safetensors), found another file")
    loaded = _load_released(path, kinds) if is_safetensors else _load_official(path)
    loaded.model.eval().to(device)
    return loaded


def save_training_state(path: str | Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings, lists and dicts of such, replacing `path` only when all is written.

    Raises UserError if the file cannot be written.
    """
    write_atomically(Path(path), lambda file: torch.save(state, file))


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Load what `save_training_state` saved, all tensors on the CPU. Raises UserError for any other file."""
    path = Path(path)
    _read_magic(path)
    return _torch_load(path, "a training state")


def _load_released(path: Path, kinds: tuple[str, ...]) -> LoadedModel:
    name = KINDS[kinds[0]][0]
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: expected {name}, found a damaged safetensors file: {error}") from error
    for scale in [name for name in tensors if name.endswith(SCALE)]:
        if (kernel := scale.removesuffix(SCALE)) in tensors:
            tensors[kernel] = tensors[kernel] * tensors.pop(scale)
    kind = next((kind for kind in KINDS if kind in metadata), None)
    if kind not in kinds:
        found = KINDS[kind][0] if kind else "a safetensors file of something else"
        raise UserError(f"{path}: expected {name}, found {found}")
    name, make = KINDS[kind]
    try:
        description = json.loads(metadata[kind])
        model = make(description["config"])
        loaded = LoadedModel(model, description["audio_features"], description["mouth_size"], description["info"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: expected the description of {name}, found {error!r} in it") from error
    if kind in GENERATORS and (
        type(loaded.mouth_size) is not int or loaded.mouth_size < 1 or loaded.mouth_size % 32
    ):
        raise UserError(
            f"{path}: expected {name} of a mouth size that is a multiple of 32, found {loaded.mouth_size}"
        )
    _load_strictly(path, name, loaded.model, tensors, {key: key for key in loaded.model.state_dict()})
    return loaded


def _load_official(path: Path) -> LoadedModel:
    expected = "a DINet generator (.safetensors) or the authors' checkpoint (.pth)"
    content = _torch_load(path, expected)
    state, info = content.get("state_dict"), {"source": "the authors' released checkpoint"}
    if isinstance(state, dict) and "module.face_encoder_blocks.0.0.conv_block.0.weight" in state:
        wav2lip = Wav2Lip(Wav2LipConfig(bgr=True))
        _fill(path, content, wav2lip, "Wav2Lip's checkpoint", ("state_dict",))
        return LoadedModel(wav2lip, audio_features="mel", mouth_size=64, info=info)
    model = DINet(DINetConfig(official_grid=True))
    names = {name: _official_name(name) for name in model.state_dict()}
    _fill(path, content, model, expected, ("state_dict", "net_g"), names)
    return LoadedModel(model, audio_features="deepspeech", mouth_size=256, info=info)


def load_third_party(path: str | Path, model: nn.Module, expected: str) -> None:
    """Fill `model` with the state dict in somebody else's file of `torch.save`, without running any code in it.

    Raises UserError if the file is missing or not what is `expected` (in words), or its tensors are not those of
    the model.
    """
    path = Path(path)
    _read_magic(path)
    _fill(path, _torch_load(path, expected), model, expected)


def _fill(
    path: Path,
    content: dict[str, Any],
    model: nn.Module,
    expected: str,
    keys: tuple[str, ...] = (),
    name_in_file: dict[str, str] | None = None,
) -> None:
    """Fill `model` with tensors that lie under `keys`, "module." before their names left out; `name_in_file` as in
    `_load_strictly`."""
    tensors = content
    try:
        for key in keys:
            tensors = tensors[key]
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    except (KeyError, TypeError, AttributeError):
        where = " in ".join(repr(key) for key in reversed(keys))
        found = _first_few([str(key) for key in content]) or "nothing"
        raise UserError(f"{path}: expected {expected}, found no {where} but {found}") from None
    _load_strictly(path, expected, model, tensors, name_in_file or {name: name for name in model.state_dict()})


def _official_name(name: str) -> str:
    for ours, theirs in OFFICIAL_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name  # audio_encoder


def _load_strictly(
    path: Path, expected: str, model: nn.Module, tensors: dict[str, Any], name_in_file: dict[str, str]
) -> None:
    """Fill `model` with exactly `tensors`; `name_in_file` maps the name of each in the model to the file's."""
    problems = []
    if missing := [name for name in name_in_file.values() if name not in tensors]:
        problems.append(f"{len(missing)} missing ({_first_few(missing)})")
    if unknown := sorted(tensors.keys() - set(name_in_file.values())):
        problems.append(f"{len(unknown)} unknown ({_first_few(unknown)})")
    own = model.state_dict()
    for ours, name in name_in_file.items():
        shape = getattr(tensors.get(name), "shape", None)
        if name in tensors and shape != own[ours].shape:
            found = None if shape is None else tuple(shape)
            problems.append(f"{name} of shape {found} instead of {tuple(own[ours].shape)}")
            break
    if problems:
        raise UserError(f"{path}: expected the tensors of {expected}, found {'; '.join(problems)}")
    model.load_state_dict({ours: tensors[name] for ours, name in name_in_file.items()})


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _read_magic(path: Path) -> bytes:
    """The first 16 bytes of a file that must be there and not be empty."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: expected a checkpoint, found: {error.strerror}") from error
    if not start:
        raise UserError(f"{path}: expected a checkpoint, found an empty file")
    return start


def _torch_load(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A file that is none of torch's can fail in any way; the words of torch may advise to run its code.
        raise UserError(f"{path}: expected {expected}, found a damaged or other file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {expected}, found a {type(content).__name__}")
    return content
