#!/usr/bin/env bash
# Train all networks, from a folder of videos to a generator for dubbing:
#
#     scripts/train_all.sh VIDEOS WORK          the paper's stages, S = 64 -> 128 -> 256, for GPUs
#     scripts/train_all.sh VIDEOS WORK small    every stage, short, from the bundled models at S = 64; on two CPU cores
#                                               this adapts them to the speakers of a few minutes of video
#
# If it is interrupted, the same command resumes it. GPUS=4 trains on four GPUs of this machine. WORK receives the
# prepared dataset, one run directory per stage (tensorboard --logdir WORK) and finally the generator.
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 || ${3:-small} != small ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
videos=$(realpath -m "$1")
work=$(realpath -m "$2")
cd "$(dirname "$0")/.."
data=$work/data
source scripts/stage.sh

syncnet() { stage "$1" train_syncnet.py --config "configs/stages/$1.yaml" "${@:2}"; }
generator() { stage "$1" train_dinet.py --config "configs/stages/$1.yaml" "${@:2}"; }

size=256
[[ ${3:-} == small ]] && size=64
"$python" -m data_processing.prepare "$videos" --output "$data" --mouth-size "$size"

if [[ ${3:-} == small ]]; then
    syncnet syncnet_32 --max-steps 100 --init-from checkpoints/syncnet_32.safetensors
    generator finetune_64 --init-from checkpoints/dinet_64.safetensors
    stage bundled_64_clip train_dinet.py --config configs/bundled/bundled_64_clip.yaml --max-steps 40 \
        --init-from "$(of finetune_64 best)" --syncnet "$(of syncnet_32 syncnet)"
    last=bundled_64_clip
else
    syncnet syncnet_64
    syncnet syncnet_128 --init-from "$(of syncnet_64 syncnet)"
    syncnet syncnet_256 --init-from "$(of syncnet_128 syncnet)"
    generator frame_64
    generator frame_128 --init-from "$(of frame_64 generator)"
    generator frame_256 --init-from "$(of frame_128 generator)"
    generator clip_256 --init-from "$(of frame_256 generator)" --syncnet "$(of syncnet_256 syncnet)"
    last=clip_256
fi
"$python" evaluate.py --checkpoint "$(of $last generator)" --data "$data" --output "$work/evaluation"
cp "$(of $last generator)" "$work/dinet_$size.safetensors"
"$python" inference.py --checkpoint "$work/dinet_$size.safetensors" --output "$work/dub.mp4"
echo "generator: $work/dinet_$size.safetensors; dub of the bundled example: $work/dub.mp4 ($SECONDS s)"
