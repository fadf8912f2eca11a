"""reproduce_tables.sh with a stand-in for Python: order of the trainings, resuming, scoring, usage."""

import shutil
from pathlib import Path

import pytest

from configs.schema import load_config
from tests.support.shell import ROOT, make_home, missing_files, run_script, trained

ABLATIONS = ["without_deformation", "without_inpainting", "attention", "flow"]
BASELINES = ["wav2lip_96", "wav2lip_192", "wav2lip_384"]


@pytest.mark.parametrize("variant", [[], ["small"]])
def test_networks_are_trained_scored_and_resumed(variant: list[str], tmp_path: Path) -> None:
    home = make_home(tmp_path)
    stages = trained(run_script("reproduce_tables.sh", home, *variant)[1])
    sizes = ("_64", "_128", "")
    dinets = [name + size for name in ["full", *ABLATIONS] for size in sizes]
    dinets = ["full", *ABLATIONS, "dinet_64"] if variant else dinets
    assert [name for name in stages if name in dinets] == dinets  # the two halves may run in parallel
    assert [name for name in stages if name not in dinets] == BASELINES
    shutil.rmtree(home / "work")
    code, commands = run_script("reproduce_tables.sh", home, *variant, breaks="attention")
    assert code != 0
    started = trained(commands)
    code, commands = run_script("reproduce_tables.sh", home, *variant)
    assert code == 0
    assert sorted(trained(commands)) == sorted(set(stages) - set(started) | {"attention"})
    scored = [line for line in commands if line.startswith("evaluate.py")]
    assert len(scored) == (7 if variant else 10)  # the other half was complete
    assert len({line.split()[line.split().index("--size") + 1] for line in scored if "/table1/" in line}) == 1
    assert not missing_files(commands)
    for line in commands:
        words = line.split()
        if line.startswith("train_dinet.py"):  # every size of an ablation has its configuration
            configs = [Path(word).stem for word in words if word.startswith("configs/")]
            name = words[words.index("--run-dir") + 1].split("/")[-1].removesuffix("_64").removesuffix("_128")
            assert (name in configs) == (name in ABLATIONS + BASELINES)
            load_config([ROOT / word for word in words if word.startswith("configs/")])
    other_variant = [] if variant else ["small"]
    assert run_script("reproduce_tables.sh", home, *other_variant)[0] == 2  # a folder holds one variant
    again = [line for line in run_script("reproduce_tables.sh", home, *variant)[1] if "visualize" not in line]
    assert again == [f"-m scripts.tables {home}/work --output {home}/work/results"]


def test_wrong_arguments_print_the_usage(tmp_path: Path) -> None:
    assert run_script("reproduce_tables.sh", make_home(tmp_path), "tiny") == (2, [])
