"""Errors that the user can fix. Commands print them as one line, without a traceback (utils/command_line.py)."""

import errno
from pathlib import Path


class UserError(Exception):
    """Bad input. The message says what is wrong and what to do; it names no command-line flag.

    Attributes:
        parameter: the parameter at fault, as the library names it ("references", "crf"); None if it is a file.
        path: the file or folder at fault; None if there is none.
    """

    def __init__(self, message: str, *, parameter: str | None = None, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.path = None if path is None else Path(path)


class ParameterError(UserError):
    """The value of a parameter is not valid."""

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(reason, parameter=parameter)


class FileError(UserError):
    """A file or folder cannot be used. The message is "PATH: REASON"."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}", path=path)


class MediaError(FileError):
    """A video, audio or image file cannot be read."""


class AudioError(MediaError):
    """The audio track of a file cannot be read."""


class TruncatedMediaError(MediaError):
    """A media file can be read up to some point only; what was read before it is valid."""


class LimitError(MediaError):
    """A media file exceeds a sanity limit (utils/limits.py)."""


class GapError(TruncatedMediaError, LimitError):
    """Two frames of a video are farther apart than a sanity limit allows; what was read before is valid."""


class NoFaceError(MediaError):
    """No face was detected in a video or image."""


class OutputError(FileError):
    """A file or folder cannot be written."""


class CheckpointError(FileError):
    """A file is not a valid checkpoint of the expected kind."""


class DatasetError(FileError):
    """A prepared dataset, or a file in it, cannot be used."""


class ConfigError(FileError):
    """A configuration file is not valid."""


class WeightsError(UserError):
    """Third-party weights cannot be obtained or are not valid."""


def error_reason(error: Exception) -> str:
    """What the operating system or FFmpeg says, without the name of the file."""
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error)
