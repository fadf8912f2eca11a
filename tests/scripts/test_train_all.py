"""train_all.sh with a stand-in for Python: order of the stages, resuming, usage."""

import shutil
from pathlib import Path

from tests.support.shell import make_home, missing_files, run_script, trained


def test_stages_go_from_coarse_to_fine(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    code, commands = run_script("train_all.sh", home)
    assert code == 0
    assert trained(commands) == [
        *(f"syncnet_{size}" for size in (64, 128, 256)),
        *(f"frame_{size}" for size in (64, 128, 256)),
        "clip_256",
    ]
    clip = next(line for line in commands if "--run-dir" in line and "clip_256" in line)
    assert f"--init-from {home}/work/frame_256/generator.safetensors" in clip
    assert f"--syncnet {home}/work/syncnet_256/syncnet.safetensors" in clip
    assert not any("--resume" in line for line in commands)
    assert (home / "work/dinet_256.safetensors").exists()
    assert not missing_files(commands)


def test_it_resumes_where_it_was_killed(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    stages = trained(run_script("train_all.sh", home, "small")[1])
    shutil.rmtree(home / "work")
    code, commands = run_script("train_all.sh", home, "small", breaks=stages[1])
    assert code != 0
    assert trained(commands) == stages[:2]
    code, commands = run_script("train_all.sh", home, "small")
    assert code == 0
    assert trained(commands) == stages[1:]
    assert [line.endswith("--resume") for line in commands if "--run-dir" in line] == [
        True,
        *[False] * (len(stages) - 2),
    ]
    assert not missing_files(commands)


def test_wrong_arguments_print_the_usage(tmp_path: Path) -> None:
    assert run_script("train_all.sh", make_home(tmp_path), "tiny") == (2, [])
