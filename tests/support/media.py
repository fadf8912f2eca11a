"""Small media files for tests: each function writes one file, quickly and deterministically, and returns its path.

They use PyAV directly, so that the reader and the writer of this project are tested against it.
"""

import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from scipy.signal import butter, sosfiltfilt

SAMPLE_RATE = 16000
FAST = {  # encoder options for speed
    "libx264": {"crf": "18", "preset": "ultrafast"},
    "libx265": {"crf": "12", "preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"crf": "12", "b": "0", "deadline": "realtime", "cpu-used": "8"},
    "mpeg4": {"qscale": "2", "flags": "+qscale", "global_quality": "236"},
    "mpeg2video": {"flags": "+ildct+ilme+qscale", "global_quality": "236"},
}


def talking_portrait(
    path: Path,
    num_frames: int = 25,
    fps: float | Fraction = 25,
    size: tuple[int, int] = (256, 256),
    with_audio: bool = True,
) -> Path:
    """A face that dlib detects, which sways slightly and whose mouth follows the loudness of the speech-like audio.

    `size` is (width, height), both even; the face is about a third of the height.
    """
    waveform = speech_like(num_frames / float(fps), seed=0)
    frames = portraits(np.arange(num_frames) / float(fps), size, waveform)
    return write_video(path, frames, fps, waveforms=[waveform] if with_audio else [])


def video_without_audio(path: Path, num_frames: int = 25) -> Path:
    """`talking_portrait` without an audio track; always an MP4, whatever the suffix of `path`."""
    return talking_portrait(path.with_suffix(".mp4"), num_frames, with_audio=False).rename(path)


def no_face_video(path: Path, num_frames: int = 10, size: tuple[int, int] = (256, 256)) -> Path:
    """A drifting colour gradient, without audio."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    frames = (
        np.rint(255 * np.stack([x, y, np.full_like(x, index / num_frames)], axis=-1)).astype(np.uint8)
        for index in range(num_frames)
    )
    return write_video(path, frames, 25)


def text_file(path: Path) -> Path:
    """A text file, whatever the suffix of `path`."""
    path.write_text("This is not a media file.\n" * 20)
    return path


def truncated_mp4(path: Path) -> Path:
    """The first half of an MP4, without the index at its end, whatever the suffix of `path`."""
    talking_portrait(path.with_suffix(".mp4")).rename(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def tone_wav(path: Path, seconds: float) -> Path:
    """A 440 Hz sine of amplitude 0.5, 16 kHz mono 16 bit."""
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return _write_wav(path, 0.5 * np.sin(2 * np.pi * 440 * times))


def speech_like_wav(path: Path, seconds: float, seed: int = 0) -> Path:
    """`speech_like` as 16 kHz mono 16 bit."""
    return _write_wav(path, speech_like(seconds, seed))


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise in the band of speech (200 to 4000 Hz) in bursts of syllable length: (N,) in [-1, 1] at 16 kHz."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE)
    # half a second more, so that even the shortest noise is longer than the transient of the filter
    noise = rng.standard_normal(num_samples + SAMPLE_RATE // 2)
    voice = sosfiltfilt(butter(4, (200, 4000), "bandpass", fs=SAMPLE_RATE, output="sos"), noise)[:num_samples]
    loudness, times = np.zeros(num_samples), np.arange(num_samples) / SAMPLE_RATE
    middle = 0.1
    while middle < seconds:
        loudness += rng.uniform(0.4, 1) * np.exp(-(((times - middle) / 0.05) ** 2))
        middle += rng.uniform(0.15, 0.35)
    return np.clip(0.25 * voice / voice.std() * loudness, -1, 1)


def _smooth(values: np.ndarray) -> np.ndarray:
    window = np.hanning(SAMPLE_RATE // 20)
    return np.convolve(values, window / window.sum(), "full")[len(window) // 2 :][: len(values)]


def portraits(
    times: np.ndarray,
    size: tuple[int, int] = (256, 256),
    waveform: np.ndarray | None = None,
    shift: Callable[[float], float] = lambda time: 0,
) -> Iterator[np.ndarray]:
    """Frames of `talking_portrait` at `times` in seconds: (H, W, 3) uint8 RGB.

    `shift` maps a time to the distance in face widths by which the face is moved to the left.
    """
    waveform = speech_like(float(times[-1]) + 0.04) if waveform is None else waveform
    loudness = np.interp(times, np.arange(len(waveform)) / SAMPLE_RATE, _smooth(np.abs(waveform)))
    openings = loudness / max(loudness.max(), 1e-6)
    for time, opening in zip(times, openings, strict=True):
        yield _portrait(time, opening, size, shift(time))


def _portrait(time_s: float, opening: float, size: tuple[int, int], shift: float = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the head of NASA's portrait of Eileen Collins, with lower lip and chin moved down."""
    width, height = size
    scale = 256 / height  # pixels of the portrait per output pixel
    image = skimage.data.astronaut()
    x = 224 + 90 * shift + (np.arange(width) - width / 2) * scale + 3 * np.sin(2 * np.pi * 0.7 * time_s)
    y = np.arange(height) * scale + 2 * np.sin(2 * np.pi * 0.9 * time_s)
    # rows from the lower lip to the chin move down; the upper lip and above, and the collar, stay
    down = 6 * opening
    y = np.interp(y, [-99, 144, 150 + down, 178 + down, 200, 600], [-99, 144, 150, 178, 200, 600])
    map_x, map_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    frame = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    in_mouth = ((map_x - 223) / 17) ** 2 + ((map_y - 147) / 3.5) ** 2 < 1
    frame[in_mouth] = (frame[in_mouth] * (1 - 0.8 * opening)).astype(np.uint8)
    return frame


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float | Fraction = 25,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: np.ndarray | None = None,
    waveforms: Sequence[np.ndarray] = (),
    field_order: str = "prog",
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video.

    Args:
        frames: (H, W, 3) RGB or (H, W, 4) RGBA, both uint8, or (3H/2, W) uint16, which is yuv420p10le.
        times: time of each frame in seconds, rounded to milliseconds; None: frame k is shown at k / fps.
        waveforms: audio tracks, (N,) at 16 kHz; the last one is the default track.
        field_order: "prog", "tff" or "bff".
        container: FFmpeg's name of the container; None: by the suffix of `path`.
        prepare: sets other attributes of the video stream.
    """
    frames = iter(frames)
    first = next(frames)
    rate = Fraction(fps).limit_denominator(1001)
    time_base = 1 / rate if times is None else Fraction(1, 1000)
    with av.open(str(path), "w", container, container_options=container_options) as file:
        video = file.add_stream(codec, rate=rate)
        video.height, video.width = (len(first) * 2 // 3, first.shape[1]) if first.ndim == 2 else first.shape[:2]
        video.pix_fmt = pix_fmt
        video.options = FAST.get(codec, {}) | (options or {})
        if times is not None:
            video.codec_context.time_base = time_base
        prepare(video)
        audio_codec = {".webm": "libopus", ".avi": "pcm_s16le"}.get(path.suffix, "aac")
        tracks = [file.add_stream(audio_codec, rate=SAMPLE_RATE, layout="mono") for _ in waveforms]
        for track in tracks:
            track.disposition = Disposition.default if track is tracks[-1] else Disposition(0)
        for index, image in enumerate(chain([first], frames)):
            pixels = "yuv420p10le" if image.ndim == 2 else "rgba" if image.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=pixels)
            if pixels == "rgb24" and video.codec_context.colorspace in list(Colorspace):
                frame = _in_tagged_colours(frame, video)
            frame = _with_field_order(frame, field_order) if field_order != "prog" else frame
            frame.pts, frame.time_base = index if times is None else round(times[index] * 1000), time_base
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        for track, waveform in zip(tracks, waveforms, strict=True):
            audio = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
            audio.sample_rate = SAMPLE_RATE
            audio.pts, audio.time_base = 0, Fraction(1, SAMPLE_RATE)  # or AAC's priming of 64 ms delays it
            file.mux(track.encode(audio))
            file.mux(track.encode(None))
    return path


def _in_tagged_colours(frame: av.VideoFrame, stream: av.VideoStream) -> av.VideoFrame:
    """A frame in the format of the stream, with the matrix and range of its tags."""
    return frame.reformat(
        format=stream.pix_fmt,
        dst_colorspace=stream.codec_context.colorspace,
        dst_color_range=stream.codec_context.color_range,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
    )


def _with_field_order(frame: av.VideoFrame, order: str) -> av.VideoFrame:
    graph = av.filter.Graph()  # the attribute of PyAV's frames is read-only
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    graph.link_nodes(source, graph.add("setfield", order), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def _write_wav(path: Path, waveform: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(waveform * 32767).astype("<i2").tobytes())
    return path


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Vowel-like audio: a 120 Hz pulse train filtered by changing formants, with pauses. (N,) in [-1, 1]."""
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    segments = []
    while sum(map(len, segments)) < seconds * 16000:
        n = int(rng.integers(1600, 4800))
        source = (np.arange(n) % 133 == 0) * 1.0 + 0.01 * rng.standard_normal(n)
        for low, high in [(250, 800), (900, 2300), (2400, 3200)]:
            radius, angle = 0.97, 2 * np.pi * rng.uniform(low, high) / 16000
            source = lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], source)
        segments.append(source / np.abs(source).max() * 0.5 * np.hanning(n) * (rng.random() > 0.2))
    return np.concatenate(segments)[: int(seconds * 16000)].astype(np.float32)


# --- one function for each kind of video; each writes `frames`, by default the talking portrait -------------------


def _frames(frames: Iterable[np.ndarray] | None, size: tuple[int, int] = (256, 256)) -> Iterable[np.ndarray]:
    return portraits(np.arange(25) / 25, size) if frames is None else frames


def uneven_times(num_frames: int) -> np.ndarray:
    """Times in seconds of the frames of `variable_frame_rate`."""
    steps = np.random.default_rng(0).choice([0.017, 0.033, 0.050, 0.121], num_frames - 1)
    return np.concatenate([[0], np.cumsum(steps)])


def variable_frame_rate(path: Path, frames: Sequence[np.ndarray] | None = None) -> Path:
    times = uneven_times(30 if frames is None else len(frames))
    return write_video(path, portraits(times) if frames is None else frames, times=times)


def at_rate(path: Path, fps: float | Fraction, frames: Iterable[np.ndarray] | None = None) -> Path:
    """One second at `fps` frames per second."""
    return write_video(path, portraits(np.arange(round(fps)) / float(fps)) if frames is None else frames, fps)


def rotated(
    path: Path, degrees: int = -90, mirrored: bool = False, frames: Iterable[np.ndarray] | None = None
) -> Path:
    """Stored rotated and mirrored; the display matrix (counterclockwise rotation by `degrees`, then mirroring)
    makes it upright."""

    def stored(frame: np.ndarray) -> np.ndarray:
        return np.rot90(frame[:, ::-1] if mirrored else frame, -degrees // 90)

    def prepare(stream: av.VideoStream) -> None:
        stream.set_display_rotation(degrees, hflip=mirrored)

    return write_video(path, map(stored, _frames(frames, (240, 320))), prepare=prepare)


def hdr(path: Path, transfer: ColorTrc, light: Iterable[np.ndarray] | None = None) -> Path:
    """HEVC, 10 bits, BT.2020, `transfer` PQ or HLG, from luminance (H, W, 3) in cd/m² (BT.2020).

    The white of the portrait is 203 cd/m².
    """
    if light is None:
        light = (203 * (frame / 255) ** 2.4 @ np.transpose(BT709_TO_BT2020) for frame in _frames(None))
    code = {ColorTrc.SMPTE2084: pq_code, ColorTrc.ARIB_STD_B67: hlg_code}[transfer]
    tags = (transfer, ColorPrimaries.BT2020, Colorspace.BT2020, ColorRange.MPEG)
    frames = (yuv_10_bit(code(frame)) for frame in light)
    return write_video(path, frames, codec="libx265", pix_fmt="yuv420p10le", prepare=partial(_tag, tags=tags))


BT709_TO_BT2020 = [[0.627404, 0.329283, 0.043313], [0.069097, 0.919540, 0.011362], [0.016391, 0.088013, 0.895595]]
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])


def pq_code(light: np.ndarray) -> np.ndarray:
    """cd/m² -> [0, 1] (SMPTE ST 2084)."""
    power = (np.asarray(light) / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_code(light: np.ndarray) -> np.ndarray:
    """(…, 3) in cd/m² on a display with a peak of 1000 cd/m² -> [0, 1] (ITU-R BT.2100)."""
    light = np.asarray(light) / 1000
    luma = np.maximum(light @ BT2020_LUMA, 1e-9)[..., None]
    scene = light * luma ** (1 / 1.2 - 1)
    curve = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), curve)


def yuv_10_bit(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) BT.2020 codes in [0, 1] -> (3H/2, W) uint16, yuv420p10le of limited range."""
    luma = rgb @ BT2020_LUMA
    halved = rgb.reshape(len(rgb) // 2, 2, -1, 2, 3).mean(axis=(1, 3))
    blue, red = ((halved[..., i] - halved @ BT2020_LUMA) / scale for i, scale in ((2, 1.8814), (0, 1.4746)))
    planes = [64 + 876 * luma, 512 + 896 * blue, 512 + 896 * red]
    return np.rint(np.concatenate([plane.ravel() for plane in planes])).astype(np.uint16).reshape(-1, rgb.shape[1])


def _tag(stream: av.VideoStream, tags: tuple[int, int, int, int]) -> None:
    context = stream.codec_context
    context.color_trc, context.color_primaries, context.colorspace, context.color_range = tags


def tagged(
    path: Path,
    matrix: Colorspace,
    color_range: ColorRange = ColorRange.MPEG,
    primaries: ColorPrimaries = ColorPrimaries.BT709,
    pix_fmt: str = "yuv420p",
    frames: Iterable[np.ndarray] | None = None,
) -> Path:
    """SDR with another matrix, range, chroma resolution or bit depth, tagged accordingly."""
    tags = (ColorTrc.BT709, primaries, matrix, color_range)
    return write_video(path, _frames(frames), pix_fmt=pix_fmt, prepare=partial(_tag, tags=tags))


def wide_gamut(path: Path, frames: Iterable[np.ndarray] | None = None) -> Path:
    """SDR in BT.2020, converted from frames in BT.709."""
    light = ((frame / 255) ** 2.4 @ np.transpose(BT709_TO_BT2020) for frame in _frames(frames))
    frames = (np.rint(255 * frame ** (1 / 2.4)).astype(np.uint8) for frame in light)
    return tagged(path, Colorspace.BT2020, primaries=ColorPrimaries.BT2020, frames=frames)


def gray(path: Path, frames: Iterable[np.ndarray] | None = None) -> Path:
    """HEVC, monochrome, limited range."""
    tags = (ColorTrc.BT709, ColorPrimaries.BT709, Colorspace.ITU709, ColorRange.MPEG)
    frames = (np.repeat(_luma_of(frame)[..., None], 3, axis=2) for frame in _frames(frames))
    return write_video(path, frames, codec="libx265", pix_fmt="gray", prepare=partial(_tag, tags=tags))


def _luma_of(frame: np.ndarray) -> np.ndarray:
    """Full-range values that swscale, which does not support limited-range gray, stores as limited range."""
    return np.rint(16 + 219 / 255 * (frame @ [0.2126, 0.7152, 0.0722])).astype(np.uint8)


def transparent(path: Path, codec: str, pix_fmt: str, frames: Iterable[np.ndarray] | None = None) -> Path:
    """RGBA frames with straight alpha; the portrait is cut out as an ellipse."""
    if frames is None:
        mask = cv2.ellipse(np.zeros((256, 256), np.uint8), (128, 128), (110, 126), 0, 0, 360, 255, -1)
        frames = (np.dstack([frame, mask]) for frame in _frames(None))
    options = {"auto-alt-ref": "0"} if codec == "libvpx-vp9" else {}
    return write_video(path, frames, codec=codec, pix_fmt=pix_fmt, options=options)


def interlaced(path: Path, frames: Iterable[np.ndarray] | None = None, top_first: bool = True) -> Path:
    """25 fps; each frame has the even lines of one and the odd lines of another of 50 images per second."""
    fields = iter(portraits(np.arange(50) / 50) if frames is None else frames)

    def woven() -> Iterator[np.ndarray]:
        for first, second in zip(fields, fields, strict=True):
            frame = np.array(first if top_first else second)
            frame[1::2] = (second if top_first else first)[1::2]
            yield frame

    options = {"flags": "+ildct+ilme", "g": "12"}
    return write_video(path, woven(), options=options, field_order="tff" if top_first else "bff")


def portrait_format(path: Path) -> Path:
    """A portrait format, 216 × 384."""
    return write_video(path, portraits(np.arange(25) / 25, (216, 384)))


def odd_size(path: Path, frames: Iterable[np.ndarray] | None = None) -> Path:
    """251 × 253 in VP9, which supports odd sizes."""
    return write_video(path, _frames(frames, (251, 253)), codec="libvpx-vp9")


def anamorphic(path: Path, frames: Iterable[np.ndarray] | None = None) -> Path:
    """Pixels with an aspect ratio of 4:3."""

    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    narrow = (cv2.resize(frame, (192, 256), interpolation=cv2.INTER_AREA) for frame in _frames(frames))
    return write_video(path, narrow, prepare=prepare)


def two_audio_tracks(path: Path) -> Path:
    """A 440 Hz tone, and speech-like audio as the default track."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    return write_video(path, _frames(None), waveforms=[tone, speech_like(1.0)])


def webm(path: Path, frames: Iterable[np.ndarray] | None = None) -> Path:
    return write_video(path, _frames(frames), codec="libvpx-vp9", waveforms=[speech_like(1.0)])


def avi(path: Path, frames: Iterable[np.ndarray] | None = None) -> Path:
    return write_video(path, _frames(frames), codec="mpeg4", waveforms=[speech_like(1.0)])


def h264(path: Path, frames: Iterable[np.ndarray] | None = None) -> Path:
    """H.264 in the container that the suffix names."""
    return write_video(path, _frames(frames), waveforms=[speech_like(1.0)])


def fragmented(path: Path, frames: Iterable[np.ndarray]) -> Path:
    """A .mkv, .ts or .mp4 that can be read while it is being written, with a key frame every half second."""
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if path.suffix == ".mp4" else {}
    return write_video(path, frames, options={"g": "12"}, container_options=options)


def gif(path: Path, frames: Iterable[np.ndarray] | None = None) -> Path:
    """256 colours, 25 frames per second."""
    return write_video(path, _frames(frames), codec="gif", pix_fmt="rgb8")


KINDS: dict[str, Callable[[Path], Path]] = {
    "variable_rate.mp4": variable_frame_rate,
    "rotated.mp4": rotated,
    "mirrored.mp4": partial(rotated, degrees=0, mirrored=True),
    "hdr_pq.mp4": partial(hdr, transfer=ColorTrc.SMPTE2084),
    "hdr_hlg.mov": partial(hdr, transfer=ColorTrc.ARIB_STD_B67),
    "10_bit.mp4": partial(tagged, matrix=Colorspace.ITU709, pix_fmt="yuv420p10le"),
    "bt2020.mkv": wide_gamut,
    "full_range.mp4": partial(tagged, matrix=Colorspace.ITU709, color_range=ColorRange.JPEG),
    "422.mkv": partial(tagged, matrix=Colorspace.ITU601, pix_fmt="yuv422p"),
    "444.mkv": partial(tagged, matrix=Colorspace.ITU709, pix_fmt="yuv444p"),
    "gray.mkv": gray,
    "alpha_prores.mov": partial(transparent, codec="prores_ks", pix_fmt="yuva444p10le"),
    "alpha_animation.mov": partial(transparent, codec="qtrle", pix_fmt="argb"),
    "alpha_png.mov": partial(transparent, codec="png", pix_fmt="rgba"),
    "alpha_vp9.webm": partial(transparent, codec="libvpx-vp9", pix_fmt="yuva420p"),
    "interlaced.mp4": interlaced,
    "interlaced.ts": partial(interlaced, top_first=False),
    "portrait.mp4": portrait_format,
    "anamorphic.mp4": anamorphic,
    "odd_size.webm": odd_size,
    "two_audio_tracks.mkv": two_audio_tracks,
    "no_audio.mp4": video_without_audio,
    "23.976.mp4": partial(at_rate, fps=Fraction(24000, 1001)),
    "29.97.mp4": partial(at_rate, fps=Fraction(30000, 1001)),
    "50.mp4": partial(at_rate, fps=50),
    "60.mp4": partial(at_rate, fps=60),
    "5.mp4": partial(at_rate, fps=5),
    "webm.webm": webm,
    "avi.avi": avi,
    "matroska.mkv": h264,
    "stream.ts": h264,
    "gif.gif": gif,
}


# --- one function for each situation of the face ---------------------------------------------------------------


def face_leaves(path: Path) -> Path:
    """4 s; from 1 s to 3 s no face is in the frame."""
    times = np.arange(100) / 25
    return write_video(path, portraits(times, shift=lambda time: 5.0 if 1 <= time < 3 else 0.0))


def face_half_out(path: Path) -> Path:
    """The left edge of the frame cuts the face in half."""
    return write_video(path, portraits(np.arange(50) / 25, shift=lambda time: 128 / 90))


def two_shots(path: Path) -> Path:
    """A face, and after one second a larger one."""
    large = (cv2.resize(frame[32:224, 32:224], (256, 256)) for frame in _frames(None))
    return write_video(path, chain(_frames(None), large))


def two_faces(path: Path) -> Path:
    """The portrait beside its mirror image."""
    return write_video(path, (np.hstack([frame, frame[:, ::-1]]) for frame in _frames(None)))


FACES: dict[str, Callable[[Path], Path]] = {
    "no_face.mp4": no_face_video,
    "face_leaves.mp4": face_leaves,
    "face_half_out.mp4": face_half_out,
    "two_shots.mp4": two_shots,
    "two_faces.mp4": two_faces,
}
