"""Content credentials: what the C2PA library reads in a signed dub, and what cannot sign."""

import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import inference
from data_processing.media.video_reader import read_frames
from dubbing.settings import DubSettings
from dubbing.signing import ContentSigner
from tests.support.commands import run_command_line
from tests.support.media import speech_like_wav, talking_portrait
from utils.errors import FileError, ParameterError

TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
EMAIL, DOCUMENTS, CODE = "1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.5.5.7.3.3"  # uses of certificates
Credentials = tuple[Path, Path]  # certificate chain and private key


def make_credentials(folder: Path, *, days: int = 30, kind: str = "P-256", use: str = EMAIL) -> Credentials:
    """Certificate chain and private key, in a new folder, valid from yesterday for `days`."""
    x509 = pytest.importorskip("cryptography.x509", reason="the extra sign is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    make_key = {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
    }[kind]
    key, issuer_key = make_key(), ec.generate_private_key(ec.SECP256R1())
    now, issuer = datetime.now(UTC), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Issuer")])
    publisher = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Publisher")])
    no_uses = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    ) | {"encipher_only": False, "decipher_only": False}

    def certificate(subject: x509.Name, public_key: object, last: datetime, *, is_issuer: bool) -> x509.Certificate:
        uses = {"digital_signature": not is_issuer, "key_cert_sign": is_issuer, "crl_sign": is_issuer}
        from_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = (
            x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number())
            .not_valid_before(min(now, last) - timedelta(days=1))
            .not_valid_after(last)
            .add_extension(x509.BasicConstraints(is_issuer, None), critical=True)
            .add_extension(x509.KeyUsage(**uses, **no_uses), critical=True)
            .add_extension(from_issuer, critical=False)
        )
        if not is_issuer:
            extended = x509.ExtendedKeyUsage([x509.ObjectIdentifier(use)])
            builder = builder.add_extension(extended, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    chain = (
        certificate(publisher, key.public_key(), now + timedelta(days=days), is_issuer=False),
        certificate(issuer, issuer_key.public_key(), now + timedelta(days=90), is_issuer=True),
    )
    pem, folder = serialization.Encoding.PEM, folder / f"{kind} {days}"
    folder.mkdir()
    (folder / "chain.pem").write_bytes(b"".join(one.public_bytes(pem) for one in chain))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return folder / "chain.pem", folder / "key.pem"


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    pytest.importorskip("c2pa", reason="the extra sign is not installed")
    return make_credentials(tmp_path)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_portrait(tmp_path_factory.mktemp("signing") / "video.mp4", 5, size=(96, 96))


def read_statements(path: Path) -> tuple[str, dict, dict]:
    """How C2PA's library judges a file, the statement about it, and all statements in it."""
    import c2pa

    reader = c2pa.Reader(str(path))
    content = json.loads(reader.json())
    return reader.get_validation_state(), content["manifests"][content["active_manifest"]], content["manifests"]


@pytest.mark.parametrize("name", ["dub.mp4", "dub.mov"])
def test_statement(name, credentials, video, tmp_path) -> None:
    output = talking_portrait(tmp_path / f"unfinished{Path(name).suffix}", 5, size=(96, 96))
    speech = speech_like_wav(tmp_path / "speech.wav", 0.2)
    ContentSigner(*credentials, Path(name)).sign(output, "dinet.safetensors", video, [speech])
    state, statement, _ = read_statements(output)
    assert state == "Valid" and statement["title"] == name
    ingredients = [(one["title"], one["relationship"]) for one in statement["ingredients"]]
    assert ingredients == [("video.mp4", "parentOf"), ("speech.wav", "componentOf")]
    (actions,) = (one["data"]["actions"] for one in statement["assertions"] if "actions" in one["label"])
    assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.edited", "c2pa.dubbed"]
    assert actions[1]["digitalSourceType"] == TERM and "dinet.safetensors" in actions[1]["description"]
    tool = statement["claim_generator_info"][0]
    assert actions[1]["softwareAgent"] == {"name": "DINet dubbing", "version": tool["version"]}
    assert len(list(read_frames(output))) == 5
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {output.name, "speech.wav"}


def test_a_changed_byte_is_noticed(credentials, video, tmp_path) -> None:
    output = Path(shutil.copy(video, tmp_path / "dub.mp4"))
    ContentSigner(*credentials, output).sign(output, "dinet.safetensors", video, [])
    content = bytearray(output.read_bytes())
    content[content.index(b"mdat") + 100] ^= 1
    output.write_bytes(content)
    assert read_statements(output)[0] == "Invalid"


def test_statements_of_the_source_are_kept(credentials, video, tmp_path) -> None:
    source, output = (Path(shutil.copy(video, tmp_path / name)) for name in ("source.mp4", "dub.mp4"))
    ContentSigner(*credentials, source).sign(source, "earlier.safetensors", video, [])
    ContentSigner(*credentials, output).sign(output, "dinet.safetensors", source, [])
    state, _, statements = read_statements(output)
    assert state == "Valid" and sorted(one["title"] for one in statements.values()) == ["dub.mp4", "source.mp4"]


@pytest.mark.parametrize("name", ["source.mkv", "source.mp4"])
def test_sources_that_the_library_cannot_read_are_named(name, credentials, video, tmp_path) -> None:
    output = Path(shutil.copy(video, tmp_path / "dub.mp4"))
    (tmp_path / name).write_bytes(b"something else")
    ContentSigner(*credentials, output).sign(output, "dinet.safetensors", tmp_path / name, [])
    state, statement, _ = read_statements(output)
    assert state == "Valid" and [one["title"] for one in statement["ingredients"]] == [name]


@pytest.mark.parametrize("kind", ["P-384", "Ed25519", "RSA"])
def test_kinds_of_keys_and_certificates(kind, credentials, tmp_path) -> None:
    ContentSigner(*make_credentials(tmp_path, kind=kind, use=DOCUMENTS), Path("dub.mp4"))


def swapped(folder: Path) -> Credentials:
    chain, key = make_credentials(folder)
    return key, chain


def no_key(folder: Path) -> Credentials:
    chain, key = make_credentials(folder)
    key.write_text("This is not a key.\n")
    return chain, key


def missing_key(folder: Path) -> Credentials:
    chain, key = make_credentials(folder)
    key.unlink()
    return chain, key


def encrypted_key(folder: Path) -> Credentials:
    from cryptography.hazmat.primitives import serialization

    chain, key = make_credentials(folder)
    private, encryption = serialization.load_pem_private_key(key.read_bytes(), None), b"password"
    encrypted = serialization.BestAvailableEncryption(encryption)
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted))
    return chain, key


def key_of_another(folder: Path) -> Credentials:
    return make_credentials(folder)[0], make_credentials(folder, days=31)[1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (swapped, FileError, "key.pem: holds no certificate in PEM format"),
        (no_key, FileError, "key.pem: holds no private key in PEM format"),
        (missing_key, FileError, "key.pem: cannot be read: No such file or directory"),
        (encrypted_key, FileError, "key.pem: is encrypted; save it without a password"),
        (key_of_another, FileError, "key.pem: is not the key of the first certificate in .*chain.pem"),
        (lambda folder: make_credentials(folder, days=-1), FileError, "chain.pem: is valid from .* only; renew it"),
        (lambda folder: make_credentials(folder, kind="secp256k1"), FileError, "expected a key of the curve P-256"),
        (lambda folder: make_credentials(folder, use=CODE), ParameterError, "chain.pem cannot sign: .*; docs"),
    ],
)
def test_credentials_that_cannot_sign(make, error, message, tmp_path) -> None:
    pytest.importorskip("c2pa", reason="the extra sign is not installed")
    with pytest.raises(error, match=message):
        ContentSigner(*make(tmp_path), Path("dub.mp4"))


def test_without_the_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ParameterError, match=r"needs the package c2pa-python .*; pip install") as caught:
        ContentSigner("chain.pem", "key.pem", Path("dub.mp4"))
    assert caught.value.parameter == "sign"


def test_refused_before_anything_is_written(video, tmp_path, capsys) -> None:
    """At once: the generator, which does not exist, is not loaded."""
    flags = ("--video", video, "--audio", video, "--checkpoint", tmp_path / "none.safetensors", "--resume")
    with pytest.raises(SystemExit) as caught:
        run_command_line(
            inference.main, *flags, "--output", tmp_path / "dub.mkv", "--sign", tmp_path / "chain.pem", "key.pem"
        )
    assert caught.value.code == 2 and not list(tmp_path.iterdir())
    message = "--sign: content credentials cannot be stored in .mkv; use .mp4 or .mov for the output\n"
    assert capsys.readouterr().err.removeprefix("error: ") == message


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_signed_dub(resume, credentials, pipeline, portrait_clip, speech, tmp_path) -> None:
    output = tmp_path / "signed.mp4"
    result = pipeline.dub(portrait_clip, speech, output, DubSettings(sign=credentials, resume=resume))
    state, statement, _ = read_statements(output)
    assert state == "Valid" and statement["title"] == "signed.mp4"
    ingredients = [(one["title"], one["relationship"]) for one in statement["ingredients"]]
    assert ingredients == [(portrait_clip.name, "parentOf"), (speech.name, "componentOf")]
    assert len(list(read_frames(output))) == result.num_frames
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["signed.mp4"]


@pytest.mark.slow
def test_resume_keeps_the_segments_of_a_dub_that_cannot_be_signed(
    credentials, pipeline, portrait_clip, speech, tmp_path, monkeypatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ParameterError("sign", "signed.mp4 cannot be signed: the certificate has expired")

    output, settings = tmp_path / "signed.mp4", DubSettings(sign=credentials, resume=True)
    with monkeypatch.context() as patch, pytest.raises(ParameterError) as caught:
        patch.setattr(ContentSigner, "sign", fail)
        pipeline.dub(portrait_clip, speech, output, settings)
    assert caught.value.parameter == "sign"
    assert not output.exists() and (tmp_path / "signed.mp4.segments" / "0000.mp4").exists()
