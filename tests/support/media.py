"""Small media made on the spot for tests: every function writes one file, quickly and always the same, and returns
its path. They write with PyAV directly, so that the project's own reader and writer are tested against it.
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
FAST = {  # options of encoders for small files soon made
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
    """A face (found by dlib) that sways a little and whose mouth follows the loudness of its speech-like sound.

    `size` is (width, height), both even; the face is about a third of the height.
    """
    waveform = speech_like(num_frames / float(fps), seed=0)
    frames = portraits(np.arange(num_frames) / float(fps), size, waveform)
    return write_video(path, frames, fps, sounds=[waveform] if with_audio else [])


def silent_video_without_audio(path: Path, num_frames: int = 25) -> Path:
    """`talking_portrait` without a sound track, an MP4 whatever the suffix of `path` says."""
    return talking_portrait(path.with_suffix(".mp4"), num_frames, with_audio=False).rename(path)


def no_face_video(path: Path, num_frames: int = 10, size: tuple[int, int] = (256, 256)) -> Path:
    """A drifting colour gradient, without sound."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    frames = (
        np.rint(255 * np.stack([x, y, np.full_like(x, index / num_frames)], axis=-1)).astype(np.uint8)
        for index in range(num_frames)
    )
    return write_video(path, frames, 25)


def text_file(path: Path) -> Path:
    """Words, whatever the suffix of `path` says."""
    path.write_text("This is not a media file.\n" * 20)
    return path


def truncated_mp4(path: Path) -> Path:
    """The first half of an MP4, as an interrupted copy leaves it, whatever the suffix of `path` says: the index at
    its end is missing."""
    talking_portrait(path.with_suffix(".mp4")).rename(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def tone_wav(path: Path, seconds: float) -> Path:
    """A 440 Hz sine of amplitude 0.5, 16 kHz mono 16 bit."""
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return _write_wav(path, 0.5 * np.sin(2 * np.pi * 440 * times))


def speech_like_wav(path: Path, seconds: float, seed: int = 0) -> Path:
    """`speech_like` as 16 kHz mono 16 bit."""
    return _write_wav(path, speech_like(seconds, seed))


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise of the voice's band (200 to 4000 Hz) in bursts of syllable length: (N,) in [-1, 1] at 16 kHz."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE)
    # Half a second more than asked, so that even the shortest request is longer than the filter's run-in.
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
    """`talking_portrait`'s frames at `times`, in seconds: (H, W, 3) uint8 RGB; `shift` moves the face to the left
    by that many faces' widths."""
    waveform = speech_like(float(times[-1]) + 0.04) if waveform is None else waveform
    loudness = np.interp(times, np.arange(len(waveform)) / SAMPLE_RATE, _smooth(np.abs(waveform)))
    openings = loudness / max(loudness.max(), 1e-6)
    for time, opening in zip(times, openings, strict=True):
        yield _portrait(time, opening, size, shift(time))


def _portrait(time_s: float, opening: float, size: tuple[int, int], shift: float = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB: NASA's portrait of Eileen Collins around the head, the lower lip and chin let down."""
    width, height = size
    scale = 256 / height  # picture pixels per output pixel
    picture = skimage.data.astronaut()
    x = 224 + 90 * shift + (np.arange(width) - width / 2) * scale + 3 * np.sin(2 * np.pi * 0.7 * time_s)
    y = np.arange(height) * scale + 2 * np.sin(2 * np.pi * 0.9 * time_s)
    # Rows: upper lip and above stay, lower lip to chin go down, the collar stays again.
    down = 6 * opening
    y = np.interp(y, [-99, 144, 150 + down, 178 + down, 200, 600], [-99, 144, 150, 178, 200, 600])
    map_x, map_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    frame = cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    in_mouth = ((map_x - 223) / 17) ** 2 + ((map_y - 147) / 3.5) ** 2 < 1
    frame[in_mouth] = (frame[in_mouth] * (1 - 0.8 * opening)).astype(np.uint8)
    return frame


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray],
    fps: float | Fraction = 25,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: np.ndarray | None = None,
    sounds: Sequence[np.ndarray] = (),
    field_order: str = "prog",
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Any video: picture k at k / fps seconds or at times[k] (whole milliseconds), sounds at 16 kHz.

    Pictures are (H, W, 3) RGB, (H, W, 4) RGBA, both uint8, or (3H/2, W) uint16, which is yuv420p10le. The field
    order is "prog", "tff" or "bff". `prepare` sets what there is no argument for. Of several sounds, the last is
    the default track.
    """
    pictures = iter(pictures)
    first = next(pictures)
    rate = Fraction(fps).limit_denominator(1001)
    time_base = 1 / rate if times is None else Fraction(1, 1000)
    with av.open(str(path), "w", container_options=container_options) as container:
        video = container.add_stream(codec, rate=rate)
        video.height, video.width = (len(first) * 2 // 3, first.shape[1]) if first.ndim == 2 else first.shape[:2]
        video.pix_fmt = pix_fmt
        video.options = FAST.get(codec, {}) | (options or {})
        if times is not None:
            video.codec_context.time_base = time_base
        prepare(video)
        sound_codec = {".webm": "libopus", ".avi": "pcm_s16le"}.get(path.suffix, "aac")
        tracks = [container.add_stream(sound_codec, rate=SAMPLE_RATE, layout="mono") for _ in sounds]
        for track in tracks:
            track.disposition = Disposition.default if track is tracks[-1] else Disposition(0)
        for index, picture in enumerate(chain([first], pictures)):
            kind = "yuv420p10le" if picture.ndim == 2 else "rgba" if picture.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=kind)
            if kind == "rgb24" and video.codec_context.colorspace in list(Colorspace):
                frame = _in_tagged_colours(frame, video)
            frame = _with_field_order(frame, field_order) if field_order != "prog" else frame
            frame.pts, frame.time_base = index if times is None else round(times[index] * 1000), time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for track, waveform in zip(tracks, sounds, strict=True):
            sound = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
            sound.sample_rate = SAMPLE_RATE
            sound.pts, sound.time_base = 0, Fraction(1, SAMPLE_RATE)  # else AAC's run-in of 64 ms delays it
            container.mux(track.encode(sound))
            container.mux(track.encode(None))
    return path


def _in_tagged_colours(frame: av.VideoFrame, stream: av.VideoStream) -> av.VideoFrame:
    """A frame in the stream's format, of the matrix and the range that the stream is tagged with."""
    return frame.reformat(
        format=stream.pix_fmt,
        dst_colorspace=stream.codec_context.colorspace,
        dst_color_range=stream.codec_context.color_range,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
    )


def _with_field_order(frame: av.VideoFrame, order: str) -> av.VideoFrame:
    graph = av.filter.Graph()  # PyAV's frames do not let it be set
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
    """Vowel-like sound: a 120 Hz pulse train through moving resonances, with pauses. (N,) in [-1, 1]."""
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    pieces = []
    while sum(map(len, pieces)) < seconds * 16000:
        n = int(rng.integers(1600, 4800))
        source = (np.arange(n) % 133 == 0) * 1.0 + 0.01 * rng.standard_normal(n)
        for low, high in [(250, 800), (900, 2300), (2400, 3200)]:
            radius, angle = 0.97, 2 * np.pi * rng.uniform(low, high) / 16000
            source = lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], source)
        pieces.append(source / np.abs(source).max() * 0.5 * np.hanning(n) * (rng.random() > 0.2))
    return np.concatenate(pieces)[: int(seconds * 16000)].astype(np.float32)


# --- one function per kind of video; each writes `pictures`, or the talking portrait ---------------------------


def _frames(pictures: Iterable[np.ndarray] | None, size: tuple[int, int] = (256, 256)) -> Iterable[np.ndarray]:
    return portraits(np.arange(25) / 25, size) if pictures is None else pictures


def uneven_times(num_frames: int) -> np.ndarray:
    """Seconds at which the frames of `variable_frame_rate` are shown."""
    steps = np.random.default_rng(0).choice([0.017, 0.033, 0.050, 0.121], num_frames - 1)
    return np.concatenate([[0], np.cumsum(steps)])


def variable_frame_rate(path: Path, pictures: Sequence[np.ndarray] | None = None) -> Path:
    times = uneven_times(30 if pictures is None else len(pictures))
    return write_video(path, portraits(times) if pictures is None else pictures, times=times)


def at_rate(path: Path, fps: float | Fraction, pictures: Iterable[np.ndarray] | None = None) -> Path:
    """One second at `fps` frames per second."""
    return write_video(path, portraits(np.arange(round(fps)) / float(fps)) if pictures is None else pictures, fps)


def turned(
    path: Path, degrees: int = -90, mirrored: bool = False, pictures: Iterable[np.ndarray] | None = None
) -> Path:
    """Stored as it comes from a camera held askew; the display matrix (turned counterclockwise by `degrees`, then
    mirrored) puts it right."""

    def stored(picture: np.ndarray) -> np.ndarray:
        return np.rot90(picture[:, ::-1] if mirrored else picture, -degrees // 90)

    def prepare(stream: av.VideoStream) -> None:
        stream.set_display_rotation(degrees, hflip=mirrored)

    return write_video(path, map(stored, _frames(pictures, (240, 320))), prepare=prepare)


def hdr(path: Path, transfer: ColorTrc, light: Iterable[np.ndarray] | None = None) -> Path:
    """HEVC, 10 bits, BT.2020, `transfer` PQ or HLG, of light (H, W, 3) in cd/m² (BT.2020); the portrait's white is
    203 cd/m²."""
    if light is None:
        light = (203 * (picture / 255) ** 2.4 @ np.transpose(BT709_TO_BT2020) for picture in _frames(None))
    code = {ColorTrc.SMPTE2084: pq_code, ColorTrc.ARIB_STD_B67: hlg_code}[transfer]
    tags = (transfer, ColorPrimaries.BT2020, Colorspace.BT2020, ColorRange.MPEG)
    pictures = (yuv_10_bit(code(picture)) for picture in light)
    return write_video(path, pictures, codec="libx265", pix_fmt="yuv420p10le", prepare=partial(_tag, tags=tags))


BT709_TO_BT2020 = [[0.627404, 0.329283, 0.043313], [0.069097, 0.919540, 0.011362], [0.016391, 0.088013, 0.895595]]
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])


def pq_code(light: np.ndarray) -> np.ndarray:
    """cd/m² -> [0, 1] (SMPTE ST 2084)."""
    power = (np.asarray(light) / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_code(light: np.ndarray) -> np.ndarray:
    """(…, 3) in cd/m² on a screen of 1000 -> [0, 1] (ITU-R BT.2100)."""
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
    pictures: Iterable[np.ndarray] | None = None,
) -> Path:
    """SDR of another matrix, range, chroma resolution or more bits, with tags that say so."""
    tags = (ColorTrc.BT709, primaries, matrix, color_range)
    return write_video(path, _frames(pictures), pix_fmt=pix_fmt, prepare=partial(_tag, tags=tags))


def wide_gamut(path: Path, pictures: Iterable[np.ndarray] | None = None) -> Path:
    """SDR in BT.2020; the pictures given are BT.709."""
    light = ((picture / 255) ** 2.4 @ np.transpose(BT709_TO_BT2020) for picture in _frames(pictures))
    pictures = (np.rint(255 * picture ** (1 / 2.4)).astype(np.uint8) for picture in light)
    return tagged(path, Colorspace.BT2020, primaries=ColorPrimaries.BT2020, pictures=pictures)


def gray(path: Path, pictures: Iterable[np.ndarray] | None = None) -> Path:
    """HEVC without colour, limited range."""
    tags = (ColorTrc.BT709, ColorPrimaries.BT709, Colorspace.ITU709, ColorRange.MPEG)
    pictures = (np.repeat(_luma_of(picture)[..., None], 3, axis=2) for picture in _frames(pictures))
    return write_video(path, pictures, codec="libx265", pix_fmt="gray", prepare=partial(_tag, tags=tags))


def _luma_of(picture: np.ndarray) -> np.ndarray:
    """What swscale, which knows no limited gray, has to be given to store limited gray."""
    return np.rint(16 + 219 / 255 * (picture @ [0.2126, 0.7152, 0.0722])).astype(np.uint8)


def transparent(path: Path, codec: str, pix_fmt: str, pictures: Iterable[np.ndarray] | None = None) -> Path:
    """RGBA pictures (transparency not multiplied into the colours); the portrait is cut out as an ellipse."""
    if pictures is None:
        mask = cv2.ellipse(np.zeros((256, 256), np.uint8), (128, 128), (110, 126), 0, 0, 360, 255, -1)
        pictures = (np.dstack([picture, mask]) for picture in _frames(None))
    options = {"auto-alt-ref": "0"} if codec == "libvpx-vp9" else {}
    return write_video(path, pictures, codec=codec, pix_fmt=pix_fmt, options=options)


def interlaced(path: Path, pictures: Iterable[np.ndarray] | None = None, top_first: bool = True) -> Path:
    """25 frames per second, each of the even lines of one and the odd lines of another of 50 pictures."""
    pictures = iter(portraits(np.arange(50) / 50) if pictures is None else pictures)

    def woven() -> Iterator[np.ndarray]:
        for first, second in zip(pictures, pictures, strict=True):
            frame = np.array(first if top_first else second)
            frame[1::2] = (second if top_first else first)[1::2]
            yield frame

    options = {"flags": "+ildct+ilme", "g": "12"}
    return write_video(path, woven(), options=options, field_order="tff" if top_first else "bff")


def upright_phone(path: Path) -> Path:
    """Higher than wide."""
    return write_video(path, portraits(np.arange(25) / 25, (216, 384)))


def odd_size(path: Path, pictures: Iterable[np.ndarray] | None = None) -> Path:
    """251 × 253 in VP9, which allows for it."""
    return write_video(path, _frames(pictures, (251, 253)), codec="libvpx-vp9")


def anamorphic(path: Path, pictures: Iterable[np.ndarray] | None = None) -> Path:
    """Pixels a third wider than high."""

    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    narrow = (cv2.resize(picture, (192, 256), interpolation=cv2.INTER_AREA) for picture in _frames(pictures))
    return write_video(path, narrow, prepare=prepare)


def two_sounds(path: Path) -> Path:
    """A 440 Hz tone, and speech-like sound, which is the default track."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    return write_video(path, _frames(None), sounds=[tone, speech_like(1.0)])


def webm(path: Path, pictures: Iterable[np.ndarray] | None = None) -> Path:
    return write_video(path, _frames(pictures), codec="libvpx-vp9", sounds=[speech_like(1.0)])


def avi(path: Path, pictures: Iterable[np.ndarray] | None = None) -> Path:
    return write_video(path, _frames(pictures), codec="mpeg4", sounds=[speech_like(1.0)])


def h264(path: Path, pictures: Iterable[np.ndarray] | None = None) -> Path:
    """In whatever container the suffix names."""
    return write_video(path, _frames(pictures), sounds=[speech_like(1.0)])


def fragmented(path: Path, pictures: Iterable[np.ndarray]) -> Path:
    """A video that can be read while it is written, .mkv, .ts or .mp4, with a key frame every half second."""
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if path.suffix == ".mp4" else {}
    return write_video(path, pictures, options={"g": "12"}, container_options=options)


def gif(path: Path, pictures: Iterable[np.ndarray] | None = None) -> Path:
    """256 colours, 25 frames per second."""
    return write_video(path, _frames(pictures), codec="gif", pix_fmt="rgb8")


KINDS: dict[str, Callable[[Path], Path]] = {
    "variable_rate.mp4": variable_frame_rate,
    "turned.mp4": turned,
    "mirrored.mp4": partial(turned, degrees=0, mirrored=True),
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
    "portrait.mp4": upright_phone,
    "anamorphic.mp4": anamorphic,
    "odd_size.webm": odd_size,
    "two_sounds.mkv": two_sounds,
    "no_sound.mp4": silent_video_without_audio,
    "23.976.mp4": partial(at_rate, fps=Fraction(24000, 1001)),
    "29.97.mp4": partial(at_rate, fps=Fraction(30000, 1001)),
    "50.mp4": partial(at_rate, fps=50),
    "60.mp4": partial(at_rate, fps=60),
    "webm.webm": webm,
    "avi.avi": avi,
    "matroska.mkv": h264,
    "stream.ts": h264,
    "gif.gif": gif,
}


# --- one function per situation of the face -------------------------------------------------------------------


def face_leaves(path: Path) -> Path:
    """4 s, from the second to the third of which nobody is in the picture."""
    times = np.arange(100) / 25
    return write_video(path, portraits(times, shift=lambda time: 5.0 if 1 <= time < 3 else 0.0))


def face_half_out(path: Path) -> Path:
    """The left edge of the picture goes through the middle of the face."""
    return write_video(path, portraits(np.arange(50) / 25, shift=lambda time: 128 / 90))


def two_shots(path: Path) -> Path:
    """A face, and after a second a larger one."""
    large = (cv2.resize(picture[32:224, 32:224], (256, 256)) for picture in _frames(None))
    return write_video(path, chain(_frames(None), large))


def two_faces(path: Path) -> Path:
    """The portrait beside its own mirror image."""
    return write_video(path, (np.hstack([picture, picture[:, ::-1]]) for picture in _frames(None)))


FACES: dict[str, Callable[[Path], Path]] = {
    "no_face.mp4": no_face_video,
    "face_leaves.mp4": face_leaves,
    "face_half_out.mp4": face_half_out,
    "two_shots.mp4": two_shots,
    "two_faces.mp4": two_faces,
}
