"""The speed of batches: python -m tests.tools.batch_table [--dubs N] [--seconds S]

Dubs the bundled video with the first seconds of the bundled speech, several times, by `inference.py --batch`: one
after another, two at the same time, and on a local Dask cluster of one worker and of two, with one thread each. All
processes that run at the same time share the cores equally. Prints a table in Markdown.
"""

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from distributed import LocalCluster

from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from utils.bundled import EXAMPLE_AUDIO, EXAMPLE_VIDEO, ROOT
from utils.command_line import print_result, run_command
from utils.cores import num_cores


def write_jobs(folder: Path, num_dubs: int, seconds: float) -> Path:
    """A jobs file and its audio."""
    audio = folder / "speech.wav"
    save_wav(audio, load_audio(EXAMPLE_AUDIO)[: round(seconds * SAMPLE_RATE)])
    rows = [f"{EXAMPLE_VIDEO},{audio},{folder / f'{number}.mp4'}" for number in range(num_dubs)]
    jobs = folder / "jobs.csv"
    jobs.write_text("\n".join(["video,audio,output", *rows]) + "\n")
    return jobs


def batch_seconds(num_dubs: int, seconds: float, num_processes: int, on_cluster: bool) -> float:
    """Seconds that a batch takes, the start of its processes included, that of the cluster not."""
    with ExitStack() as stack:
        jobs = write_jobs(Path(stack.enter_context(TemporaryDirectory())), num_dubs, seconds)
        flags = ["--jobs", str(num_processes)]
        if on_cluster:
            environment = {"OMP_NUM_THREADS": str(max(1, num_cores() // num_processes))}
            options = {"n_workers": num_processes, "threads_per_worker": 1, "env": environment}
            cluster = stack.enter_context(LocalCluster(**options, dashboard_address=None))
            flags = ["--scheduler", cluster.scheduler_address]
        begin = time.monotonic()
        command = [sys.executable, str(ROOT / "inference.py"), "--batch", str(jobs), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.monotonic() - begin


def run(args: argparse.Namespace) -> None:
    print_result(f"{args.dubs} dubs of {args.seconds:g} s, {num_cores()} cores\n")
    print_result("| | seconds | dubs/minute | speed |\n|---|---|---|---|")
    first_s = None
    for on_cluster in (False, True):
        for num_processes in (1, 2):
            seconds = batch_seconds(args.dubs, args.seconds, num_processes, on_cluster)
            first_s = first_s or seconds
            name = f"`--jobs {num_processes}`"
            if on_cluster:
                name = "1 worker" if num_processes == 1 else f"{num_processes} workers"
            print_result(f"| {name} | {seconds:.1f} | {60 * args.dubs / seconds:.1f} | × {first_s / seconds:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dubs", type=int, default=4, help="in the batch (default 4)")
    parser.add_argument("--seconds", type=float, default=4, help="of each dub (default 4)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
