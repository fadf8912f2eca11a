"""Train all networks, from a folder of videos to a generator for dubbing: scripts/train_all.sh VIDEOS WORK [RECIPE]

Recipes:
  recommended  the stages of the paper with what was found to be better, S = 64 -> 128 -> 256; for GPUs (default)
  paper        the stages as the paper and its release have them; for GPUs
  small        every stage, short, from the bundled models at S = 64; on two CPU cores this adapts them to the
               speakers of a few minutes of video

All stages are checked before the first one starts; --dry-run does nothing else. If training is interrupted, the
same command resumes it. GPUS=4 trains on four GPUs of this machine. WORK receives the prepared dataset, one run
directory per stage (tensorboard --logdir WORK) and finally the generator.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import FOLDER, SyncNetConfig, TrainConfig, load_config
from models.checkpoint import GENERATORS, SYNCNET, load_model
from training.networks import check_initial_generator, check_syncnet, generator_config
from training.run import max_processes
from training.syncnet_trainer import check_initial_syncnet
from utils.bundled import BUNDLED_GENERATOR, BUNDLED_SYNCNET, ROOT
from utils.command_line import run_command
from utils.errors import ParameterError, UserError

SYNCNET_FILE, GENERATOR_FILE, BEST_FILE = "syncnet.safetensors", "generator.safetensors", "best.safetensors"


@dataclass(frozen=True)
class Stage:
    """One training run.

    config: configuration, below configs/. The run is named after it.
    init_from, syncnet: what to start from, and the SyncNet of the sync loss: a checkpoint, or the name of an
        earlier stage.
    result: file of the run that later stages use.
    max_steps: overrides that of the configuration.
    """

    config: str
    init_from: str | Path | None = None
    syncnet: str | Path | None = None
    result: str = GENERATOR_FILE
    max_steps: int | None = None

    @property
    def name(self) -> str:
        return Path(self.config).stem


RECIPES = {
    "recommended": [
        Stage("stages/syncnet_64.yaml", result=SYNCNET_FILE),
        Stage("stages/syncnet_128.yaml", "syncnet_64", result=SYNCNET_FILE),
        Stage("stages/syncnet_256.yaml", "syncnet_128", result=SYNCNET_FILE),
        Stage("stages/frame_64.yaml"),
        Stage("stages/frame_128.yaml", "frame_64"),
        Stage("stages/frame_256.yaml", "frame_128"),
        Stage("stages/clip_256.yaml", "frame_256", "syncnet_256"),
    ],
    "paper": [
        Stage("paper/syncnet_256.yaml", result=SYNCNET_FILE),
        Stage("paper/frame_64.yaml"),
        Stage("paper/frame_128.yaml", "frame_64"),
        Stage("paper/frame_256.yaml", "frame_128"),
        Stage("paper/clip_256.yaml", "frame_256", "syncnet_256"),
    ],
    "small": [
        Stage("stages/syncnet_32.yaml", BUNDLED_SYNCNET, result=SYNCNET_FILE, max_steps=100),
        Stage("stages/finetune_64.yaml", BUNDLED_GENERATOR, result=BEST_FILE),
        Stage("bundled/bundled_64_clip.yaml", "finetune_64", "syncnet_32", max_steps=40),
    ],
}


def overrides(stage: Stage, earlier: dict[str, Stage], work: Path) -> dict[str, str | int]:
    """What a stage sets on top of its configuration; the names are those of flags, too."""
    values: dict[str, str | int] = {}
    for key in ("init_from", "syncnet"):
        source = getattr(stage, key)
        if source is not None:
            values[key] = str(source if isinstance(source, Path) else work / source / earlier[source].result)
    if stage.max_steps:
        values["max_steps"] = stage.max_steps
    return values


def check(stages: list[Stage], work: Path, processes: int) -> dict[str, TrainConfig | SyncNetConfig]:
    """Check that every stage can be trained in so many processes, and print a line about each.

    Returns:
        The configuration of each stage.

    Raises:
        UserError: a configuration is not valid, a checkpoint is missing, or does not fit the stage that uses it.
    """
    configs: dict[str, TrainConfig | SyncNetConfig] = {}

    def origin(source: str | Path, kinds: tuple[str, ...]) -> tuple[Any, int, str]:
        """Architecture, mouth size and audio features of a checkpoint, which may not exist yet."""
        if isinstance(source, Path):
            loaded = load_model(source, kinds=kinds)
            return getattr(loaded.model, "config", None), loaded.mouth_size, loaded.audio_features
        config = configs[source]
        architecture = generator_config(config) if isinstance(config, TrainConfig) else None
        return architecture, config.mouth_size, config.audio_features

    print(f"{'stage':<16} {'S':>4} {'batch':>6} {'passes':>6} {'steps':>7}  samples per process")
    for number, stage in enumerate(stages):
        earlier = {stage.name: stage for stage in stages[:number]}
        kind = SyncNetConfig if stage.result == SYNCNET_FILE else TrainConfig
        config = load_config(FOLDER / stage.config, overrides(stage, earlier, work), kind)
        try:
            if kind is SyncNetConfig and stage.init_from:
                check_initial_syncnet(config, origin(stage.init_from, SYNCNET)[2])
            elif stage.init_from:
                architecture, _, features = origin(stage.init_from, GENERATORS)
                check_initial_generator(config, architecture, features)
            if stage.syncnet:
                check_syncnet(config, *origin(stage.syncnet, SYNCNET)[1:])
        except UserError as error:
            raise UserError(f"{stage.config}: {error}") from None
        used = min(processes, max_processes(config))
        fewest, most = config.batch_size // used, -(-config.batch_size // used)
        share = f"{most}" if fewest == most else f"{fewest} or {most}"
        idle = f", none in {processes - used} of {processes}" if used < processes else ""
        columns = (config.mouth_size, config.batch_size, config.grad_accum_steps, config.max_steps)
        print(f"{stage.name:<16} {'{:>4} {:>6} {:>6} {:>7}'.format(*columns)}  {share}{idle}")
        configs[stage.name] = config
    return configs


def train(stage: Stage, earlier: dict[str, Stage], work: Path, processes: int) -> None:
    """Train one stage, or resume it if it was interrupted, or do nothing if it is finished."""
    run_dir = work / stage.name
    if (run_dir / "finished").exists():
        return
    started = time.monotonic()
    script = "train_syncnet.py" if stage.result == SYNCNET_FILE else "train_dinet.py"
    flags = ["--config", FOLDER / stage.config, "--data", work / "data", "--run-dir", run_dir]
    for name, value in overrides(stage, earlier, work).items():
        flags += [f"--{name.replace('_', '-')}", value]
    if (run_dir / "state.pt").exists():
        flags.append("--resume")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    run_python(*(launcher if processes > 1 else []), script, *flags)
    (run_dir / "finished").touch()
    print(f"=== {stage.name}: {time.monotonic() - started:.0f} s", flush=True)


def run_python(*arguments: object) -> None:
    """Run a command of this repository. Raises UserError if it fails."""
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C or SIGTERM: end the command as well, and wait for it
            process.terminate()
            raise
    if code:
        name = next(word for word in command[1:] if word.endswith(".py") or word.startswith("data_processing"))
        raise UserError(f"{name} ended with exit code {code}; the same command continues from its last saved state")


def run(args: argparse.Namespace) -> None:
    started = time.monotonic()
    gpus = os.environ.get("GPUS", "1")
    if not gpus.isdecimal() or int(gpus) == 0:
        raise UserError(f"GPUS: expected a number of processes above 0, found {gpus!r}")
    processes = int(gpus)
    videos, work, stages = args.videos.absolute(), args.work.absolute(), RECIPES[args.recipe]
    if not videos.exists():
        raise ParameterError("videos", f"{videos}: no such file or folder")
    configs = check(stages, work, processes)
    if args.dry_run:
        print(f"every stage can be trained in {processes} processes; nothing was written")
        return
    size = max(config.mouth_size for config in configs.values())
    features = configs[stages[0].name].audio_features
    options = ["--mouth-size", size, "--audio-features", features]
    if any((work / stage.name).exists() for stage in stages):
        print(f"{work / 'data'}: left as it is, because training on it has begun")
    else:
        run_python("-m", "data_processing.prepare", videos, "--output", work / "data", *options)
    for number, stage in enumerate(stages):
        train(stage, {stage.name: stage for stage in stages[:number]}, work, processes)
    generator, result = work / f"dinet_{size}.safetensors", work / stages[-1].name / GENERATOR_FILE
    run_python("evaluate.py", "--checkpoint", result, "--data", work / "data", "--output", work / "evaluation")
    shutil.copyfile(result, generator)
    run_python("inference.py", "--checkpoint", generator, "--output", work / "dub.mp4")
    seconds = time.monotonic() - started
    print(f"generator: {generator}; dub of the bundled example: {work / 'dub.mp4'} ({seconds:.0f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/train_all.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("videos", type=Path, help="folder of videos, or a video")
    add("work", type=Path, help="folder for everything that is made")
    add("recipe", nargs="?", choices=list(RECIPES), default="recommended", help="default recommended")
    add("--dry-run", action="store_true", help="check all stages, write nothing")
    run_command(parser, run)


if __name__ == "__main__":
    main()
