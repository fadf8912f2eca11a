"""A web page that dubs: drop a video or a photo and a recording, click a face, watch the result.

    python app.py

Only this machine can open the page unless --host says otherwise. The files of a visitor are deleted when the page
is closed, all files when the command ends.
"""

import argparse
import hmac
import html
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path

import cv2
import numpy as np

from data_processing.media.audio_io import media_duration_s
from data_processing.media.video_reader import moving_stream, open_media, probe
from dubbing.pipeline import DubbingPipeline
from dubbing.preview import find_faces, numbered_faces, preview_mouth
from dubbing.settings import DubSettings
from utils.bundled import BUNDLED_GENERATOR, EXAMPLE_AUDIO, EXAMPLE_VIDEO
from utils.command_line import run_command
from utils.errors import FileError, LimitError, ParameterError, UserError, error_reason
from utils.malloc import limit_malloc_arenas

try:
    import gradio as gr
except ImportError:
    print("error: the page needs gradio: run make app, or pip install -e '.[app,train,eval]'", file=sys.stderr)
    raise SystemExit(2) from None

PASSWORD = "DINET_PASSWORD"  # the environment variable
DELETED_AFTER_S = 24 * 3600  # files of visitors whose leaving went unnoticed
MAX_WAITING = 20  # dubs in the queue
ENDS_IN_S = 30  # a dub that is cancelled; usually in one or two
PLAYED, SUFFIXES = ("h264", "vp8", "vp9", "av1"), (".mp4", ".m4v", ".mov", ".webm")  # by browsers
INTRODUCTION = """# Dub a video

The lips of a video or photo follow another recording. Dub only speakers who have agreed to it, and label the
result. Your files are deleted when you close this page."""
# Source and result play, pause and seek together; the source is muted. Media events do not bubble.
HEAD = """<script>
for (const type of ["play", "pause", "seeked"]) document.addEventListener(type, (event) => {
  const [source, result] = ["#source video", "#result video"].map((query) => document.querySelector(query));
  if (!source || !result || ![source, result].includes(event.target)) return;
  const other = event.target === source ? result : source;
  source.muted = true;
  if (Math.abs(other.currentTime - event.target.currentTime) > 0.1) other.currentTime = event.target.currentTime;
  if (event.target.paused) other.pause(); else if (!other.ended) other.play();
}, true);
</script>"""
# fonts of the visitor's system, none from the internet; help in a colour that can be read
THEME = gr.themes.Default(font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["monospace"]).set(
    block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
)
LAUNCH_OPTIONS = {
    "theme": THEME,
    "css": "#status { min-height: 6rem }",
    "head": HEAD,
    "allowed_paths": [],
    "prevent_thread_lock": True,
    "quiet": True,
    "share": False,
    "ssr_mode": False,
    "run_history": False,
    "enable_monitoring": False,
    "footer_links": ["api"],
}
Centre = tuple[float, float, str]  # of a face: x and y in the image that is shown, and "X,Y" in source pixels


class Cancelled(Exception):
    """The visitor does not want the dub any more."""


@dataclass
class Session:
    """What one visitor has on this machine.

    folder: of the images and results that are shown.
    uploads: files that the browser sent.
    cancelled: set to end the dub.
    running: held by the dub.
    used_s: time.monotonic() of the last request.
    """

    folder: Path
    uploads: set[Path] = field(default_factory=set)
    cancelled: threading.Event = field(default_factory=threading.Event)
    running: threading.Lock = field(default_factory=threading.Lock)
    used_s: float = 0.0


class Page:
    """What happens when somebody uses the page. Methods whose last argument is a request belong to its session.

    Args:
        pipeline: dubs, for all visitors; one at a time.
        cache: gradio's folder, from which it serves files whose random names the browser knows.
        max_minutes: of a dub.
        device: as of the pipeline, for generators that are adapted.
    """

    def __init__(self, pipeline: DubbingPipeline, cache: Path, max_minutes: float, device: str = "auto") -> None:
        self.pipeline, self.cache, self.max_minutes, self.device = pipeline, cache, max_minutes, device
        self.sessions: dict[str, Session] = {}

    def session(self, request: gr.Request, *uploads: str | None) -> Session:
        """The session of a request, to which files belong that the browser sent."""
        now = time.monotonic()
        for key in [key for key, session in self.sessions.items() if now - session.used_s > DELETED_AFTER_S]:
            self.end(key)
        key = request.session_hash
        if key not in self.sessions:
            self.sessions[key] = Session(Path(tempfile.mkdtemp(dir=self.cache)))
        self.sessions[key].used_s = now
        self.sessions[key].uploads.update(Path(path) for path in uploads if path)
        return self.sessions[key]

    def leave(self, request: gr.Request) -> None:
        """Somebody has closed the page."""
        self.end(request.session_hash)

    def end(self, key: str) -> None:
        """End the dub of a session and delete its files, but for uploads that another one has, too."""
        session = self.sessions.pop(key, None)
        if session is None:
            return
        session.cancelled.set()
        shutil.rmtree(session.folder, ignore_errors=True)
        for path in session.uploads.difference(*(other.uploads for other in self.sessions.values())):
            path.unlink(missing_ok=True)

    def use_example(self, request: gr.Request) -> tuple[str, str]:
        """Copies of the bundled example, since only gradio's folder is served."""
        folder = self.session(request).folder
        return shutil.copy(EXAMPLE_VIDEO, folder), shutil.copy(EXAMPLE_AUDIO, folder)

    def show_faces(self, video: str | None, request: gr.Request) -> tuple[dict, dict, list[Centre], dict, dict]:
        """The faces of a new source, numbered in an image and as choices, and their centres; then updates of the
        options for a second speaker."""
        session = self.session(request, video)
        if video is None:
            hidden = gr.update(value=None, visible=False)
            return hidden, hidden, [], hidden, hidden
        with self.errors_as_lines():
            frame, boxes = find_faces(Path(video))
        image, scale = numbered_faces(frame, boxes)
        path = Path(tempfile.mkdtemp(dir=session.folder)) / "faces.jpg"
        cv2.imwrite(str(path), image[..., ::-1])
        largest, *others = (1 + np.argsort(boxes[:, 0] - boxes[:, 2])).tolist()
        choices = [(f"Face {n}", n) for n in range(1, len(boxes) + 1)]
        several = len(boxes) > 1
        return (
            gr.update(value=path, visible=True, label="Faces: click one" if several else "Face"),
            gr.update(choices=choices, value=largest, visible=several),
            [(x * scale, y * scale, f"{x:.0f},{y:.0f}") for x, y in ((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()],
            gr.update(value=None, visible=several),
            gr.update(choices=choices, value=others[0] if several else None, visible=several),
        )

    @staticmethod
    def click_face(centres: list[Centre], event: gr.SelectData) -> int:
        """The number of the face nearest to a click into the image."""
        return 1 + int(np.argmin([np.hypot(x - event.index[0], y - event.index[1]) for x, y, _ in centres]))

    def cancel(self, request: gr.Request) -> tuple:
        """End the dub of a session, and wait for its end. Updates as of `dub`."""
        session = self.session(request)
        session.cancelled.set()
        if session.running.acquire(timeout=ENDS_IN_S):
            session.running.release()
        return status("Cancelled."), gr.update(visible=False), gr.update(visible=False), gr.update(visible=False)

    def dub(
        self,
        video: str | None,
        audio: str | None,
        face: int | None,
        centres: list[Centre],
        texture: bool,
        when_short: str,
        minutes: float,
        soundtrack: str | None,
        second_audio: str | None,
        second_face: int | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how gradio is asked for it)
    ) -> Iterator[tuple]:
        """Yield updates of status, preview, source and result: with a preview first, then with the result."""
        files = {video, audio, soundtrack, second_audio}
        session = self.session(request, *files)
        hidden = gr.update(value=None, visible=False)
        with self.errors_as_lines(), session.running, recorded_messages(files) as messages:
            session.cancelled = threading.Event()
            if not video or not audio:
                raise ParameterError("video" if not video else "speech", "drop a file first, or use the example")
            audios, faces = [Path(audio)], [centres[face - 1][2] if face and len(centres) > 1 else "largest"]
            if second_audio:
                if not second_face or second_face == face:
                    raise ParameterError("second face", "choose another than the first")
                if minutes:
                    raise ParameterError("adapt", "expected one speech, found 2; remove the second")
                audios.append(Path(second_audio))
                faces.append(centres[second_face - 1][2])
            settings = DubSettings(
                faces=tuple(faces),
                texture=texture,
                when_short=when_short,
                soundtrack=soundtrack,
            )
            for path in audios:
                self.check_length(path, media_duration_s(path))
            info = probe(Path(video))
            if when_short == "keep":
                self.check_length(Path(video), info.duration_s)
            for earlier in session.folder.glob("dub-*"):
                shutil.rmtree(earlier)
            folder = Path(tempfile.mkdtemp(prefix="dub-", dir=session.folder))
            yield status("Looking for the face …"), hidden, hidden, hidden
            report = reporter(progress, session.cancelled)
            pipeline = self.pipeline
            if minutes:
                from training.adapt import adapted_generator  # whose libraries a dub without it does not need

                options = {"minutes": minutes, "device": self.device, "face": settings.faces[0]}
                adapted = adapted_generator(Path(video), folder / "adapted.safetensors", **options, progress=report)
                pipeline = DubbingPipeline(adapted, device=self.device)
            mouth = preview_mouth(pipeline, Path(video), audios[0], folder, settings, partial(report, "preview"))
            preview = hidden
            if mouth is not None:
                cv2.imwrite(str(folder / "preview.jpg"), mouth[..., ::-1])
                preview = gr.update(value=folder / "preview.jpg", visible=True)
            yield status("Dubbing …"), preview, hidden, hidden

            def report_frame(done: int, expected: int) -> None:
                self.check_length(audios[0], expected / info.fps)  # recordings of browsers state no length
                report("dubbing", done, expected)

            output = folder / f"{Path(video).stem}-dubbed.mp4"
            result = pipeline.dub(video, audios, output, settings, report_frame)
            summary = f"{result.num_frames} frames in {result.total_s:.0f} s."
            if unchanged := result.num_frames - result.num_dubbed:
                summary += f" {unchanged} frames without a face are unchanged."
            notes = "".join(f" {self.without_folders(message)}." for message in messages)
            source = gr.update(value=video, visible=True) if is_played(Path(video)) else hidden
            yield status(summary + notes), preview, source, gr.update(value=output, visible=True)

    def check_length(self, path: Path, seconds: float) -> None:
        """Raise LimitError for what is longer than this page dubs."""
        if seconds > self.max_minutes * 60:
            reason = f"expected at most {self.max_minutes:g} min, found {float(seconds) / 60:.1f} min"
            raise LimitError(path, reason)

    @contextmanager
    def errors_as_lines(self) -> Iterator[None]:
        """Show a user error as the line that commands print."""
        try:
            yield
        except Cancelled:
            raise gr.Error("Cancelled.", visible=False, print_exception=False) from None
        except UserError as error:
            prefix = f"{error.parameter}: " if error.parameter else ""
            line = html.escape(self.without_folders(f"{prefix}{error}"))
            raise gr.Error(line, duration=None, print_exception=False) from None

    def without_folders(self, text: str) -> str:
        """A message with the names of files in gradio's folder, not their paths on this machine."""
        return re.sub(rf"{re.escape(str(self.cache))}/([\w-]+/)*", "", text)


def reporter(progress: gr.Progress, cancelled: threading.Event) -> Callable[[str, int, int], None]:
    """A function that shows the progress of a stage, and raises Cancelled when that is set."""
    stage_of, first, started = "", 0, 0.0

    def report(stage: str, done: int, expected: int) -> None:
        nonlocal stage_of, first, started
        if cancelled.is_set():
            raise Cancelled
        if stage != stage_of:
            stage_of, first, started = stage, done, time.monotonic()
        progress((done, expected), desc=f"{stage}{time_left(done - first, expected - done, started)}", unit="steps")

    return report


def time_left(done: int, todo: int, started: float) -> str:
    """ ", 1:05 left" after `done` steps since `started` (time.monotonic), with `todo` more; "" if not known yet."""
    elapsed = time.monotonic() - started
    if done < 5 or elapsed < 1:
        return ""
    minutes, seconds = divmod(round(elapsed / done * todo), 60)
    return f", {minutes}:{seconds:02} left"


def status(text: str) -> str:
    """A line that screen readers read when it changes."""
    return f'<p role="status">{html.escape(text)}</p>'


def is_played(video: Path) -> bool:
    """Whether browsers can play a source beside the result; False for a photo."""
    with open_media(video) as container:
        stream = moving_stream(container)
        return stream is not None and stream.codec_context.name in PLAYED and video.suffix.lower() in SUFFIXES


@contextmanager
def recorded_messages(paths: set[str | None]) -> Iterator[list[str]]:
    """Warnings and notes of the dub that runs, or about one of these files; each once."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            of_dub = record.name.split(".")[0] in ("dubbing", "training")
            if (of_dub or str(getattr(record, "path", None)) in paths) and record.getMessage() not in messages:
                messages.append(record.getMessage())

    handler = Handler()
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)


def build(page: Page) -> gr.Blocks:
    """The components of the page, and what they call."""
    with gr.Blocks(title="Dub a video", analytics_enabled=False, delete_cache=(3600, DELETED_AFTER_S)) as demo:
        gr.Markdown(INTRODUCTION)
        centres = gr.State([])
        shown_only = {"interactive": False, "buttons": []}
        with gr.Row():
            with gr.Column(min_width=300):
                video = gr.File(label="1. Video or photo of a speaker", height=150, elem_id="video")
                faces = gr.Image(label="Faces", visible=False, height=320, elem_id="faces", **shown_only)
                face = gr.Radio(label="Face to dub", info="Numbered from left to right.", visible=False)
            with gr.Column(min_width=300):
                audio = gr.Audio(
                    label="2. Speech: a file, or record it", type="filepath", buttons=[], elem_id="audio"
                )
                with gr.Accordion("Options", open=False):
                    texture = gr.Checkbox(
                        True, label="Texture", info="Take lips, teeth and skin from other frames; sharper."
                    )
                    when_short = gr.Radio(
                        [("End with the speech", "stop"), ("Keep the rest of the video", "keep")],
                        value="stop",
                        label="If the speech is shorter",
                        info="The rest stays as it is, silent.",
                    )
                    minutes = gr.Slider(
                        0, 10, 0, step=1, label="Adapt, minutes", info="First train on this speaker; 0: not at all."
                    )
                    soundtrack = gr.File(label="Soundtrack, instead of the speech", height=150)
                    second_audio = gr.Audio(
                        label="Second speech, for another face",
                        type="filepath",
                        visible=False,
                        buttons=[],
                        elem_id="second_audio",
                    )
                    second_face = gr.Radio(
                        label="Second face", info="The second speech drives it; both are heard.", visible=False
                    )
        with gr.Row():
            start = gr.Button("Dub", variant="primary")
            stop = gr.Button("Cancel")
            example = gr.Button("Use the example")
        state = gr.HTML(status("Ready."), elem_id="status", label="Progress")
        preview = gr.Image(
            label="Preview: source and dub", visible=False, height=300, elem_id="preview", **shown_only
        )
        with gr.Row():
            source = gr.Video(label="Source", visible=False, elem_id="source", min_width=300, **shown_only)
            result = gr.Video(
                label="Dub", visible=False, interactive=False, elem_id="result", min_width=300, buttons=["download"]
            )
        private = {"api_visibility": "private", "show_progress": "minimal"}
        quick = {**private, "show_progress": "hidden"}
        found = [faces, face, centres, second_audio, second_face]
        video.change(page.show_faces, video, found, concurrency_limit=1, **private)
        faces.select(page.click_face, centres, face, **quick)
        example.click(page.use_example, None, [video, audio], **quick)
        shown = [state, preview, source, result]
        dubbing = start.click(
            page.dub,
            [video, audio, face, centres, texture, when_short, minutes, soundtrack, second_audio, second_face],
            shown,
            concurrency_limit=1,
            show_progress_on=state,
            api_name="dub",
        )
        stopping = stop.click(lambda: status("Cancelling …"), None, state, queue=False, **quick)
        stopping.then(page.cancel, None, shown, cancels=[dubbing], queue=False, **quick)
        demo.unload(page.leave)
    return demo.queue(max_size=MAX_WAITING, default_concurrency_limit=4)


def run(args: argparse.Namespace) -> None:
    """Serve the page until the command is interrupted."""
    for name in ("max_minutes", "max_mb"):
        if not 0 < getattr(args, name) < inf:
            raise ParameterError(name, f"expected a number above 0, found {getattr(args, name):g}")
    password = read_password(args.password_file)
    if password is None and args.host not in ("127.0.0.1", "localhost", "::1"):
        message = "anyone who can reach this machine can use the page; --password-file sets a password"
        print(f"warning: --host: {message}", file=sys.stderr)
    limit_malloc_arenas()
    with tempfile.TemporaryDirectory(prefix="dinet-page-") as folder:
        cache = Path(folder).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(cache)
        pipeline = DubbingPipeline(args.checkpoint, device=args.device)
        _ = pipeline.generator  # an error now, not at the first dub
        page = Page(pipeline, cache, args.max_minutes, args.device)
        demo = build(page)
        try:
            demo.launch(
                server_name=args.host,
                server_port=args.port,
                auth=None if password is None else (lambda _, given: hmac.compare_digest(given.encode(), password)),
                auth_message="Any name, and the password of this page.",
                max_file_size=round(args.max_mb * 2**20),
                **LAUNCH_OPTIONS,
            )
            print(f"The page is at {demo.local_url} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        except (OSError, OverflowError) as error:
            raise ParameterError("port", str(error)) from None
        finally:
            for session in page.sessions.values():
                session.cancelled.set()
            demo.close(verbose=False)


def read_password(path: Path | None) -> bytes | None:
    """The first line of a file, else the environment variable PASSWORD; None if there is neither.

    Raises:
        FileError: the file cannot be read, or begins with an empty line.
    """
    if path is None:
        return os.environ[PASSWORD].encode() if os.environ.get(PASSWORD) else None
    try:
        password = path.read_bytes().partition(b"\n")[0].strip()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error_reason(error)}") from None
    if not password:
        raise FileError(path, "begins with an empty line; expected a password")
    return password


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to serve at (default 127.0.0.1; 0.0.0.0: to other machines)")
    add("--port", type=int, default=7860, help="(default 7860)")
    add(
        "--password-file",
        type=Path,
        metavar="FILE",
        help=f"ask for the password in the first line of FILE (default: for that in {PASSWORD}, if it is set)",
    )
    add("--max-minutes", type=float, default=10, help="longest dub (default 10)")
    add("--max-mb", type=float, default=500, help="largest upload (default 500)")
    add("--checkpoint", type=Path, default=BUNDLED_GENERATOR, help="generator (default: the bundled one)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    run_command(parser, run)


if __name__ == "__main__":
    main()
