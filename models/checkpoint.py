"""Saving and loading of networks and training states.

A model is one safetensors file that contains its configuration, so loading needs nothing else. `load_model` also
reads the authors' checkpoints. A training state is a file of `torch.save`, loaded without executing code. All files
are written atomically.
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
from utils.errors import CheckpointError, WeightsError, error_reason
from utils.files import write_atomically

# Modules of DINet whose names differ in the authors' checkpoint: ours -> theirs.
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

SCALE = ":scale"  # suffix of a tensor's name: it scales the int8 tensor of that name

# Kinds of models, by their metadata key in the file: name in messages, constructor from the stored configuration.
KINDS = {
    "dinet": ("a DINet generator", lambda config: DINet(DINetConfig(**config))),
    "wav2lip": ("a Wav2Lip generator", lambda config: Wav2Lip(Wav2LipConfig(**config))),
    "syncnet": ("a SyncNet", lambda config: SyncNet(**config)),
}
GENERATORS, SYNCNET = ("dinet", "wav2lip"), ("syncnet",)


@dataclass(frozen=True)
class LoadedModel:
    """A network with the settings needed to use it.

    model: in float32, in evaluation mode.
    audio_features: name of the audio features that it was trained with.
    mouth_size: S, the side of the mouth box in pixels; face crops are 13S/8 × 5S/4.
    info: notes on the training, JSON values.
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
    """Save a model for inference as one safetensors file.

    Args:
        path: the file.
        model, audio_features, mouth_size, info: the fields of `LoadedModel`.
        bits: precision of the kernels: 32, 16, or 8 (int8 with one scale per output channel). All other tensors are
            stored in 32 bits.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # Biases, batch norms and the whitening stay in 32 bits: they are small, and variances can exceed the range of
    # float16.
    kernels = {name: tensors[name] for name, parameter in model.named_parameters() if parameter.ndim > 1}
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
    """Load a model onto `device`.

    Args:
        path: a file of `save_model`; for generators also a checkpoint (.pth) of the authors of DINet or Wav2Lip.
        device: where the model is put.
        kinds: accepted kinds, keys of `KINDS`.

    Raises:
        CheckpointError: the file cannot be read or is not such a checkpoint, or its tensors are not exactly those
            of the model.
    """
    path = Path(path)
    # A safetensors file starts with the length of its header in 8 bytes, then the header in JSON.
    is_safetensors = _read_magic(path)[8:9] == b"{"
    if not is_safetensors and kinds != GENERATORS:
        raise _invalid(path, f"not a safetensors file, as for {KINDS[kinds[0]][0]}")
    loaded = _load_released(path, kinds) if is_safetensors else _load_official(path)
    loaded.model.eval().to(device)
    return loaded


def save_training_state(path: str | Path, state: dict[str, Any]) -> None:
    """Save a training state: nested dicts and lists of tensors, numbers and strings.

    Raises:
        OutputError: the file cannot be written; the previous file stays.
    """
    write_atomically(Path(path), lambda file: torch.save(state, file))


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Load a file of `save_training_state`, with all tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read or is not a training state.
    """
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
        raise _invalid(path, f"damaged safetensors file: {error}") from error
    for scale in [name for name in tensors if name.endswith(SCALE)]:
        if (kernel := scale.removesuffix(SCALE)) in tensors:
            tensors[kernel] = tensors[kernel] * tensors.pop(scale)
    kind = next((kind for kind in KINDS if kind in metadata), None)
    if kind not in kinds:
        content = KINDS[kind][0] if kind else "a safetensors file of another program"
        raise _invalid(path, f"{content}, not {name}")
    name, make = KINDS[kind]
    try:
        description = json.loads(metadata[kind])
        model = make(description["config"])
        loaded = LoadedModel(model, description["audio_features"], description["mouth_size"], description["info"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _invalid(path, f"damaged description of {name}: {error!r}") from error
    if kind in GENERATORS and (
        type(loaded.mouth_size) is not int or loaded.mouth_size < 1 or loaded.mouth_size % 32
    ):
        raise _invalid(path, f"mouth size: expected a multiple of 32, found {loaded.mouth_size}")
    _load_strictly(path, name, loaded.model, tensors, {key: key for key in loaded.model.state_dict()})
    return loaded


def _load_official(path: Path) -> LoadedModel:
    expected = "a generator (.safetensors) or a checkpoint of the authors (.pth)"
    content = _torch_load(path, expected)
    state, info = content.get("state_dict"), {"source": "the authors' released checkpoint"}
    if isinstance(state, dict) and "module.face_encoder_blocks.0.0.conv_block.0.weight" in state:
        wav2lip = Wav2Lip(Wav2LipConfig(bgr=True))
        _fill(path, content, wav2lip, "the authors' Wav2Lip", ("state_dict",))
        return LoadedModel(wav2lip, audio_features="mel", mouth_size=64, info=info)
    model = DINet(DINetConfig(official_grid=True))
    names = {name: _official_name(name) for name in model.state_dict()}
    _fill(path, content, model, "the authors' DINet", ("state_dict", "net_g"), names)
    return LoadedModel(model, audio_features="deepspeech", mouth_size=256, info=info)


def load_third_party(path: str | Path, model: nn.Module, expected: str) -> None:
    """Load third-party weights, a state dict saved with `torch.save`, into `model`, without executing code.

    Args:
        path: the file.
        model: the network; its tensors must be exactly those of the file.
        expected: name of the weights in messages.

    Raises:
        WeightsError: the file cannot be read or does not contain exactly these tensors.
    """
    path = Path(path)
    try:
        _read_magic(path)
        _fill(path, _torch_load(path, expected), model, expected)
    except CheckpointError as error:
        raise WeightsError(str(error), path=path) from error


def _fill(
    path: Path,
    content: dict[str, Any],
    model: nn.Module,
    expected: str,
    keys: tuple[str, ...] = (),
    name_in_file: dict[str, str] | None = None,
) -> None:
    """Load the tensors under the nested `keys` of `content` into `model`.

    The prefix "module." of their names is removed. `name_in_file` as in `_load_strictly`.
    """
    tensors = content
    try:
        for key in keys:
            tensors = tensors[key]
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    except (KeyError, TypeError, AttributeError):
        where = " in ".join(repr(key) for key in reversed(keys)) or "state dict"
        present = _first_few([str(key) for key in content]) or "none"
        raise _invalid(path, f"no {where}, as in {expected}; keys in the file: {present}") from None
    _load_strictly(path, expected, model, tensors, name_in_file or {name: name for name in model.state_dict()})


def _official_name(name: str) -> str:
    for ours, theirs in OFFICIAL_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name  # audio_encoder


def _load_strictly(
    path: Path, expected: str, model: nn.Module, tensors: dict[str, Any], name_in_file: dict[str, str]
) -> None:
    """Load exactly `tensors` into `model`; `name_in_file` maps tensor names of the model to names in the file."""
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
            problems.append(f"{name}: expected shape {tuple(own[ours].shape)}, found {found}")
            break
    if problems:
        raise _invalid(path, f"tensors of {expected}: {'; '.join(problems)}")
    model.load_state_dict({ours: tensors[name] for ours, name in name_in_file.items()})


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _read_magic(path: Path) -> bytes:
    """The first 16 bytes of a file, which must exist and not be empty."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe would wait for its other end
        raise CheckpointError(path, "is a pipe or a device, not a file")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error_reason(error)
        raise CheckpointError(path, reason) from error
    if not start:
        raise _invalid(path, "empty file")
    return start


def _torch_load(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Other files can raise any exception. Its message is not shown: it may advise to execute code in the file.
        raise _invalid(path, f"damaged, or not {expected}") from error
    if not isinstance(content, dict):
        raise _invalid(path, f"a {type(content).__name__}, not {expected}")
    return content


def _invalid(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(path, f"not a valid checkpoint: {reason}")
