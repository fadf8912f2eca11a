"""The page: what happens in it, without a browser and in one. Browser tests need Playwright and a Chromium: that of
`playwright install chromium`, or the file that the variable CHROMIUM names.

SCREENSHOTS=docs keeps the screenshots of docs/app.md.
"""

import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

gr = pytest.importorskip("gradio", reason="the extra app is not installed")

import app  # noqa: E402 (needs gradio)
from data_processing.media.audio_io import load_audio, save_wav  # noqa: E402
from data_processing.media.video_reader import read_frames  # noqa: E402
from dubbing.face_track import track_face  # noqa: E402
from dubbing.pipeline import DubbingPipeline  # noqa: E402
from tests.support.commands import run_command_line  # noqa: E402
from tests.support.dubbing import small_and_large_face  # noqa: E402
from tests.support.media import speech_like_wav, text_file  # noqa: E402
from utils.bundled import EXAMPLE_AUDIO, EXAMPLE_VIDEO  # noqa: E402
from utils.errors import FileError, MediaError  # noqa: E402


def request(name: str = "somebody") -> SimpleNamespace:
    return SimpleNamespace(session_hash=name)


@pytest.fixture
def page(tmp_path) -> app.Page:
    return app.Page(None, tmp_path, max_minutes=10)


def uploaded(page: app.Page, source: Path, name: str | None = None) -> str:
    """A file as gradio stores it."""
    folder = page.cache / "0f3a"
    folder.mkdir(exist_ok=True)
    return str(shutil.copy(source, folder / (name or source.name)))


def test_faces_are_shown_and_clicked(page, portrait_clip, tmp_path):
    video = uploaded(page, small_and_large_face(portrait_clip, tmp_path / "two.mp4"))
    image, choice, centres, second_speech, second = page.show_faces(video, request())
    assert Path(image["value"]).parent.parent == page.session(request()).folder
    assert choice["choices"] == [("Face 1", 1), ("Face 2", 2)]
    assert (choice["value"], choice["visible"]) == (2, True)  # the larger one
    assert (second["choices"], second["value"]) == (choice["choices"], 1)
    assert second["visible"] and second_speech["visible"]
    assert page.click_face(centres, SimpleNamespace(index=[100, 200])) == 1
    assert page.click_face(centres, SimpleNamespace(index=[500, 20])) == 2
    image, choice, centres, second_speech, second = page.show_faces(None, request())
    assert centres == []
    assert not any(update["visible"] for update in (image, choice, second_speech, second))


def test_errors_are_lines_without_folders(page, tmp_path):
    assert page.without_folders(f"{tmp_path}/tmp_0a/dub-x_1/my video.mp4: damaged") == "my video.mp4: damaged"
    video = uploaded(page, text_file(tmp_path / "x.mp4"), "<b>.mp4")
    with pytest.raises(gr.Error) as caught:
        page.show_faces(video, request())
    assert caught.value.message.startswith("&lt;b&gt;.mp4: not a media file")
    with pytest.raises(gr.Error) as caught:
        next(page.dub(None, None, None, [], True, "stop", 0, None, None, None, request(), None))
    assert caught.value.message == "video: drop a file first, or use the example"


def test_files_are_deleted_with_their_session(page, tmp_path):
    video, audio = uploaded(page, EXAMPLE_VIDEO), uploaded(page, EXAMPLE_AUDIO)
    first, second = page.session(request("first"), video, audio), page.session(request("second"), audio)
    copied = page.use_example(request("second"))
    page.leave(request("first"))
    assert first.cancelled.is_set() and not second.cancelled.is_set()
    assert not first.folder.exists() and not Path(video).exists()
    assert Path(audio).exists() and all(Path(path).exists() for path in copied)
    page.leave(request("second"))
    page.leave(request("second"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_files_of_those_whose_leaving_went_unnoticed(page, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = page.session(request("first"))
    now[0] += app.DELETED_AFTER_S - 1
    second = page.session(request("second"))
    assert first.folder.exists()
    now[0] += 2
    page.session(request("second"))
    assert not first.folder.exists() and second.folder.exists()


def test_length_is_limited(page, tmp_path):
    page.check_length(tmp_path / "speech.wav", 600)
    with pytest.raises(MediaError, match=r"speech\.wav: expected at most 10 min, found 10\.1 min"):
        page.check_length(tmp_path / "speech.wav", 606)


def test_progress_states_the_time_left_and_ends_when_cancelled(monkeypatch):
    shown, now, cancelled = [], [100.0], threading.Event()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    report = app.reporter(lambda steps, desc, unit: shown.append((steps, desc)), cancelled)
    report("dubbing", 1, 251)
    now[0] += 20
    report("dubbing", 51, 251)  # 50 frames in 20 s
    report("adapting", 0, 10)
    assert shown == [((1, 251), "dubbing"), ((51, 251), "dubbing, 1:20 left"), ((0, 10), "adapting")]
    cancelled.set()
    with pytest.raises(app.Cancelled):
        report("dubbing", 52, 251)


def test_password(tmp_path, monkeypatch):
    monkeypatch.delenv(app.PASSWORD, raising=False)
    assert app.read_password(None) is None
    monkeypatch.setenv(app.PASSWORD, "grün")
    assert app.read_password(None) == "grün".encode()
    (tmp_path / "password").write_bytes(b"secret \r\nnot this")
    assert app.read_password(tmp_path / "password") == b"secret"
    (tmp_path / "password").write_bytes(b"\n")
    with pytest.raises(FileError, match="begins with an empty line"):
        app.read_password(tmp_path / "password")
    with pytest.raises(FileError, match="cannot be read"):
        app.read_password(tmp_path / "none")


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--max-minutes", "0", "expected a number above 0, found 0"),
        ("--max-mb", "inf", "expected a number above 0, found inf"),
        ("--password-file", "none.txt", "none.txt: cannot be read: No such file or directory"),
        ("--checkpoint", "none.safetensors", "none.safetensors: no such file"),
    ],
)
def test_errors_of_the_command_are_one_line(flag, value, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command_line(app.main, flag, value)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {flag}: {reason}\n"


def test_what_browsers_play(portrait_clip, tmp_path):
    assert app.is_played(portrait_clip)
    assert not app.is_played(shutil.copy(portrait_clip, tmp_path / "portrait.mkv"))


@pytest.mark.slow
def test_dub_and_cancel(page, portrait_clip, speech, checkpoint, monkeypatch):
    """With a generator adapted to the video, which is in the folder of the session."""

    def adapted_generator(video: Path, path: Path, minutes: float, device: str, face: str, progress) -> Path:
        assert (str(video), minutes, device, face) == (files[0], 2, "cpu", "70,80")
        assert page.session(request()).folder in path.parents
        progress("adapting", 1, 2)
        return checkpoint

    monkeypatch.setattr("training.adapt.adapted_generator", adapted_generator)
    page.device = "cpu"
    faces = [(35.0, 40.0, "70,80"), (90.0, 40.0, "180,80")]
    files = uploaded(page, portrait_clip), uploaded(page, speech)
    inputs = (*files, 1, faces, True, "stop", 2, None, None, None, request())
    shown = []
    updates = list(page.dub(*inputs, lambda steps, desc, **_: shown.append((desc.split(",")[0], steps[0]))))
    assert shown[0] == ("adapting", 1)
    assert {done for stage, done in shown if stage == "dubbing"} - {0} == set(range(1, 52))
    line, preview, source, result = updates[-1]
    assert "51 frames in" in line and preview["visible"] and source["value"] == files[0]
    assert len(list(read_frames(result["value"]))) == 51
    assert result["value"].name == "portrait-dubbed.mp4"

    def cancel_at_ten(steps: tuple[int, int], desc: str, **_: object) -> None:
        if steps[0] == 10 and desc.startswith("dubbing"):
            page.session(request()).cancelled.set()

    with pytest.raises(gr.Error, match="Cancelled"):
        list(page.dub(*inputs, cancel_at_ten))
    assert not result["value"].exists()  # the earlier result went when the new dub began
    assert [path.name for path in page.session(request()).folder.rglob("*.mp4")] == ["preview.mp4"]


@pytest.mark.slow
def test_two_speakers(portrait_clip, checkpoint, tmp_path):
    page = app.Page(DubbingPipeline(checkpoint, device="cpu"), tmp_path, max_minutes=10)
    video = uploaded(page, small_and_large_face(portrait_clip, tmp_path / "two.mp4"))
    first, second = (uploaded(page, speech_like_wav(tmp_path / f"{n}.wav", 0.4, n)) for n in (1, 2))
    *_, choices, centres, _, _ = page.show_faces(video, request())
    inputs = [video, first, choices["value"], centres, True, "stop", 0, None, second]
    *_, (_, _, _, result) = page.dub(*inputs, 1, request(), lambda *_, **__: None)
    source, dubbed = (next(read_frames(Path(path))).astype(int) for path in (video, result["value"]))
    for side in (np.s_[:, :256], np.s_[:, 256:]):
        assert np.abs(dubbed[side] - source[side]).mean() > 0.5
    with pytest.raises(gr.Error, match="second face: choose another than the first"):
        next(page.dub(*inputs, 2, request(), None))
    inputs[6] = 5
    with pytest.raises(gr.Error, match="adapt: expected one speech, found 2"):
        next(page.dub(*inputs, 1, request(), None))


@pytest.mark.slow
def test_cancel_while_the_face_is_tracked(portrait_clip, speech, checkpoint, tmp_path, monkeypatch):
    """Before the preview, and so before any frame."""

    def slowly(*args: object) -> Iterator:
        for frame in track_face(*args):
            time.sleep(0.2)
            yield frame

    monkeypatch.setattr("dubbing.pipeline.track_face", slowly)
    page = app.Page(DubbingPipeline(checkpoint, device="cpu"), tmp_path, max_minutes=10)
    inputs = [uploaded(page, portrait_clip), uploaded(page, speech), None, [], True, "stop", 0, None, None, None]
    shown = []

    def cancel(steps: tuple[int, int], desc: str, **_: object) -> None:
        shown.append((desc, steps[0]))
        page.session(request()).cancelled.set()

    with pytest.raises(gr.Error, match="Cancelled"):
        list(page.dub(*inputs, request(), cancel))
    assert shown == [("preview", 0)]


# --- in a browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, app.Page]]:
    """Address of a page with the bundled generator, and the page."""
    cache = tmp_path_factory.mktemp("cache").resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        page = app.Page(DubbingPipeline(), cache, max_minutes=10)
        demo = app.build(page)
        _, address, _ = demo.launch(server_name="127.0.0.1", max_file_size=2**20, **app.LAUNCH_OPTIONS)
        yield address, page
        demo.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as tools:
        try:
            browser = tools.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visit(served, browser) -> Iterator[Callable]:
    """A function that opens the page for somebody else; all leave at the end."""
    address, page = served
    contexts = []

    def visit(**options: object):
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(100_000)
        tab.goto(address)
        return tab

    yield visit
    for context in contexts:
        context.close()
    wait_until(lambda: not page.sessions, "all have left")


@pytest.fixture
def short_speech(tmp_path) -> Path:
    """Two seconds of the example."""
    path = tmp_path / "short.wav"
    save_wav(path, load_audio(EXAMPLE_AUDIO)[:32000])
    return path


def upload(tab, video: Path, audio: Path | None = None) -> None:
    tab.locator("#video input[type=file]").set_input_files(video)
    if audio:
        tab.locator("#audio input[type=file]").set_input_files(audio)


@pytest.mark.slow
def test_nothing_else_is_served(served):
    address, page = served
    for path in (EXAMPLE_VIDEO, Path(app.__file__), page.cache.parent, Path("/etc/hostname")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}gradio_api/file={path}")
        assert caught.value.code in (403, 404)


@pytest.mark.slow
def test_from_upload_to_a_playable_result(served, visit, short_speech, tmp_path):
    """At desktop width, then the screenshots: on a phone, and dark."""
    address, page = served
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    tab = visit(viewport={"width": 1100, "height": 900}, accept_downloads=True)
    elsewhere = []
    tab.on("request", lambda sent: elsewhere.append(sent.url) if sent.url.startswith("http") else None)
    tab.reload()
    upload(tab, EXAMPLE_VIDEO, short_speech)
    tab.locator("#faces img").wait_for()
    tab.get_by_role("button", name="Options").press("Enter")  # by keyboard
    for label in ("Texture", "Adapt, minutes", "Keep the rest of the video"):
        tab.get_by_label(label).first.wait_for()
    tab.get_by_role("button", name="Options").press("Enter")
    tab.get_by_role("button", name="Dub", exact=True).press("Enter")
    tab.locator("#preview img").wait_for()
    tab.get_by_text(re.compile(r"dubbing, 0:\d\d left")).first.wait_for()
    tab.screenshot(path=shots / "app_progress.jpg", type="jpeg", quality=60, full_page=True)
    tab.locator("#result video").wait_for()
    assert "50 frames in" in tab.get_by_role("status").first.inner_text()
    videos = "[...document.querySelectorAll('#source video, #result video')]"
    tab.evaluate("() => document.querySelector('#result video').play()")
    tab.wait_for_function("() => document.querySelector('#result video').currentTime > 1")
    tab.evaluate("() => document.querySelector('#result video').pause()")
    tab.wait_for_timeout(500)
    (source_s, source_muted), (result_s, result_muted) = tab.evaluate(
        f"() => {videos}.map(video => [video.currentTime, video.muted])"
    )
    assert abs(source_s - result_s) < 0.3
    assert (source_muted, result_muted) == (True, False)
    with tab.expect_download() as download:
        tab.locator("#result").get_by_label("Download").click()
    assert len(list(read_frames(download.value.path()))) == 50
    tab.screenshot(path=shots / "app.jpg", type="jpeg", quality=60, full_page=True)
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.wait_for_timeout(500)
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    tab.emulate_media(color_scheme="dark")
    tab.reload()
    tab.get_by_role("button", name="Use the example").wait_for()
    tab.screenshot(path=shots / "app_phone.jpg", type="jpeg", quality=60, full_page=True)
    assert {url.split("/")[2] for url in elsewhere} == {address.split("/")[2]}  # nothing from the internet
    folders = [session.folder for session in page.sessions.values()]
    tab.close()
    wait_until(lambda: not any(folder.exists() for folder in folders), "the files are deleted")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.slow
def test_cancel_and_bad_files(served, visit, tmp_path):
    _, page = served
    tab = visit()
    upload(tab, text_file(tmp_path / "notes.mp4"))
    error = tab.get_by_test_id("toast-body").filter(has_text="notes.mp4: not a media file")
    error.wait_for()
    assert str(page.cache) not in error.inner_text()
    tab.get_by_role("button", name="Use the example").click()
    tab.locator("#faces img").wait_for()
    for awaited in (tab.get_by_text("Looking for the face"), tab.locator("#preview img")):
        tab.get_by_role("button", name="Dub", exact=True).click()
        awaited.wait_for()
        tab.get_by_role("button", name="Cancel").click()
        tab.get_by_role("status").get_by_text("Cancelled.").wait_for()
        tab.wait_for_timeout(500)
        assert tab.locator("#status").inner_text() == "Cancelled."
    (session,) = page.sessions.values()
    names = lambda: sorted(path.name for path in session.folder.rglob("*portrait*.mp4"))  # noqa: E731
    wait_until(lambda: names() == ["portrait.mp4"], "no output is left")
    assert not tab.locator("#result video").is_visible()


@pytest.mark.slow
def test_two_faces_and_speeches(served, visit, portrait_clip, short_speech, tmp_path):
    tab = visit()
    upload(tab, small_and_large_face(portrait_clip, tmp_path / "two.mp4"), short_speech)
    tab.locator("#faces img").wait_for()
    assert tab.get_by_label("Face 2").first.is_checked()  # the larger one
    tab.get_by_role("button", name="Options").click()
    tab.locator("#second_audio input[type=file]").set_input_files(short_speech)
    tab.get_by_role("button", name="Dub", exact=True).click()
    tab.locator("#result video").wait_for()
    assert "50 frames in" in tab.get_by_role("status").first.inner_text()


@pytest.mark.slow
def test_two_sessions(served, visit, short_speech):
    """The second one waits for the first; each has its own result, and loses it when it leaves."""
    _, page = served
    tabs = [visit(), visit()]
    for tab in tabs:
        upload(tab, EXAMPLE_VIDEO, short_speech)  # the same files
        tab.locator("#faces img").wait_for()
    for tab in tabs:
        tab.get_by_role("button", name="Dub", exact=True).click()
    sources = [tab.locator("#result video").get_attribute("src") for tab in tabs]
    assert len(set(sources)) == 2
    tabs[0].close()
    wait_until(lambda: len(page.sessions) == 1, "the first has left")
    statuses = []
    for source in sources:
        try:
            statuses.append(urllib.request.urlopen(source).status)
        except urllib.error.HTTPError as error:
            statuses.append(error.code)
    assert statuses[1] == 200 and statuses[0] in (403, 404)
    (session,) = page.sessions.values()
    assert session.uploads and all(path.exists() for path in session.uploads)
