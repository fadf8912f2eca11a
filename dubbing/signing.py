"""Content credentials (C2PA) in a dub: a signed statement of what was changed, by what, and in which files."""

import io
import logging
import re
import shutil
import tempfile
import tomllib
import wave
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from utils.bundled import ROOT
from utils.errors import FileError, ParameterError, error_reason

if TYPE_CHECKING:
    from c2pa import Builder, Signer

SUFFIXES = {".mp4", ".mov"}  # of outputs that can hold a statement; there is no place for it in .mkv
# also in the metadata of every output; the term is the IPTC's for media that are partly generated
DUBBED = "Dubbed: the movement of the mouth is generated"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
# uses that certificates may state: e-mail protection, document signing, claims of C2PA; the library knows the first
USES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
SETTINGS = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},  # no network
    "trust": {"trust_config": "\n".join(USES)},
}
logger = logging.getLogger(__name__)


class ContentSigner:
    """Signs dubs with the certificate of whoever publishes them; a trial signature shows at once whether it can.

    Args:
        certificates: PEM file with the certificate, followed by those of its issuers.
        key: PEM file with its private key, not encrypted.
        output: file name of a dub that is to be signed.

    Raises:
        ParameterError: the output is neither .mp4 nor .mov, the package c2pa-python is not installed, or C2PA does
            not accept the certificate.
        FileError: a file cannot be read or is no such file, the certificate is not valid today, or the key is not
            that of the certificate.
    """

    def __init__(self, certificates: str | Path, key: str | Path, output: Path) -> None:
        if output.suffix.lower() not in SUFFIXES:
            reason = f"content credentials cannot be stored in {output.suffix}; use .mp4 or .mov for the output"
            raise ParameterError("sign", reason)
        try:
            import c2pa  # an extra
        except ImportError as error:
            reason = f"needs the package c2pa-python ({error}); pip install 'c2pa-python>=0.38,<0.39'"
            raise ParameterError("sign", reason) from None
        algorithm, chain, private_key = _read_credentials(Path(certificates), Path(key))
        self._c2pa, self._title = c2pa, output.name
        self._version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
        self._context = c2pa.Context(settings=c2pa.Settings.from_dict(SETTINGS))
        try:
            self._signer: Signer = c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(algorithm.encode(), chain, private_key, None)
            )
            trial = c2pa.Builder({}, self._context)
            trial.set_intent(c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.DIGITAL_CREATION)
            trial.sign(self._signer, "wav", io.BytesIO(_short_wav()), io.BytesIO())
        except c2pa.C2paError as error:
            reason = f"{certificates} cannot sign: {_reason(error)}; docs/responsible_use.md says what it needs"
            raise ParameterError("sign", reason) from None

    def sign(self, path: Path, generator: str, video: Path, audio: Sequence[Path]) -> None:
        """Put the signed statement into a complete file.

        Args:
            path: the dub; it may have another name than `output`.
            generator: file name of the generator.
            video: source video, whose content credentials become a part of the statement.
            audio: driving audio and soundtrack, likewise.

        Raises:
            ParameterError: it cannot be signed.
            OSError: it cannot be written, or a source cannot be read.
        """
        tool = {"name": "DINet dubbing", "version": self._version}
        actions = [  # after c2pa.opened, which the library adds for the source video
            {
                "action": "c2pa.edited",
                "description": f"{DUBBED} ({generator})",
                "digitalSourceType": SOURCE_TYPE,
                "softwareAgent": tool,
            },
            {"action": "c2pa.dubbed", "softwareAgent": tool},
        ]
        assertion = {"label": "c2pa.actions.v2", "data": {"actions": actions}}
        statement = {"title": self._title, "claim_generator_info": [tool], "assertions": [assertion]}
        try:
            builder = self._c2pa.Builder(statement, self._context)
            builder.set_intent(self._c2pa.C2paBuilderIntent.EDIT)
            self._add_ingredient(builder, video, "parentOf")
            for source in audio:
                self._add_ingredient(builder, source, "componentOf")
            with path.open("rb+") as file, tempfile.TemporaryFile(dir=path.parent) as signed:
                builder.sign(self._signer, path.suffix.lower().removeprefix("."), file, signed)
                signed.seek(0)
                file.seek(0)
                shutil.copyfileobj(signed, file)
                file.truncate()
        except self._c2pa.C2paError as error:
            raise ParameterError("sign", f"{self._title} cannot be signed: {_reason(error)}") from None

    def _add_ingredient(self, builder: "Builder", path: Path, relationship: str) -> None:
        ingredient = {"title": path.name, "relationship": relationship}
        with path.open("rb") as file:
            try:
                builder.add_ingredient(ingredient, path.suffix.lower().removeprefix("."), file)
            except self._c2pa.C2paError as error:
                message = "%s: whether it has content credentials cannot be read (%s)"
                logger.info(message, path, _reason(error), extra={"path": path})
                file.seek(0)
                builder.add_ingredient(ingredient, "application/octet-stream", file)


def _read_credentials(certificates: Path, key: Path) -> tuple[str, bytes, bytes]:
    """C2PA's name of the algorithm, the certificates and the private key in PEM, checked against each other."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        chain = x509.load_pem_x509_certificates(_read(certificates))
    except ValueError:
        raise FileError(certificates, "holds no certificate in PEM format") from None
    try:
        private_key = serialization.load_pem_private_key(_read(key), password=None)
    except TypeError:
        raise FileError(key, "is encrypted; save it without a password (openssl pkey -in FILE -out NEW)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise FileError(key, "holds no private key in PEM format") from None
    if chain[0].public_key() != private_key.public_key():
        raise FileError(key, f"is not the key of the first certificate in {certificates}")
    begin, end = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc
    if not begin <= datetime.now(UTC) <= end:
        raise FileError(certificates, f"is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d} only; renew it")
    algorithm = None
    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        algorithm = CURVES.get(private_key.curve.name)
    elif isinstance(private_key, rsa.RSAPrivateKey):
        algorithm = "ps256"
    elif isinstance(private_key, ed25519.Ed25519PrivateKey):
        algorithm = "ed25519"
    if algorithm is None:
        raise FileError(key, "expected a key of the curve P-256, P-384 or P-521, an RSA or an Ed25519 key")
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    certificate_bytes = b"".join(one.public_bytes(pem) for one in chain)
    return algorithm, certificate_bytes, private_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The library's message in one line, without the kind of error before it and addresses in the file."""
    return re.sub(r" \(self#[^)]*\)", "", " ".join(str(error).split())).split(": ", 1)[-1]


def _short_wav() -> bytes:
    """One sample of silence, for the trial signature."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\0")
    return content.getvalue()
