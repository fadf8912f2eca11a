"""identities: groups of videos by face recognition."""

import csv
from pathlib import Path

import numpy as np
import pytest

from data_processing.face import identities
from data_processing.face.identities import assign_identities, mean_descriptor
from tests.support.media import no_face_video, text_file

MEDIA = Path(__file__).resolve().parents[4] / "shared" / "media" / "videos"


def descriptors(*people: int) -> dict[str, np.ndarray]:
    """One per video: people lie at corners at a distance of 1, and their videos scatter about them by 0.1."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1 / np.sqrt(128), (len(people), 128))
    return {f"/v/{k}.mp4": np.eye(128)[person] / np.sqrt(2) + noise[k] for k, person in enumerate(people)}


def test_videos_of_one_identity_get_its_first_ones_name() -> None:
    found = list(assign_identities(descriptors(0, 1, 0, 2, 1, 0), {}).values())
    assert [found.index(name) for name in found] == [0, 1, 0, 3, 1, 0]
    assert found[3].startswith("3-")


def test_known_identities_stay_when_videos_are_added() -> None:
    everything = descriptors(0, 1, 0, 2, 1, 0)
    paths = list(everything)
    first = assign_identities({path: everything[path] for path in paths[2:5]}, {})
    later = assign_identities(everything, first)
    assert {path: later[path] for path in first} == first
    assert later[paths[0]] == later[paths[5]] == first[paths[2]]
    assert later[paths[1]] == first[paths[4]]
    assert assign_identities(everything, dict.fromkeys(paths, "Bob")) == dict.fromkeys(paths, "Bob")


def test_a_video_without_a_face_is_an_identity_of_its_own() -> None:
    found = assign_identities(dict.fromkeys(("/a/1.mp4", "/b/1.mp4")) | descriptors(0), {})
    assert len(set(found.values())) == 3


@pytest.mark.slow
def test_mean_descriptor(portrait_clip: Path, tmp_path: Path) -> None:
    descriptor = mean_descriptor(portrait_clip)
    assert descriptor.shape == (128,)
    assert np.linalg.norm(descriptor - mean_descriptor(portrait_clip)) == 0
    assert mean_descriptor(no_face_video(tmp_path / "none.mp4")) is None
    assert mean_descriptor(text_file(tmp_path / "text.mp4")) is None


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"needs {MEDIA}")
def test_real_videos_of_known_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "NUM_FRAMES", 3)
    with (MEDIA / "MANIFEST.tsv").open(newline="") as file:
        people = {row["file"]: row["person"] for row in csv.DictReader(file, delimiter="\t")}
    chosen = ("Barack Obama", "Fei-Fei Li", "MEAD M0", "Andrew Ng")
    people = {str(MEDIA / name): person for name, person in people.items() if person.startswith(chosen)}
    found = assign_identities({path: mean_descriptor(Path(path)) for path in people}, {})
    pairs = {(people[path], found[path]) for path in people}
    assert (
        len(pairs) == len(set(people.values())) == len(set(found.values()))
    )  # one identity for each, and only one
