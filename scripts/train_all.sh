#!/usr/bin/env bash
# From a folder of videos to a generator that dubs, stage after stage:
#
#     scripts/train_all.sh VIDEOS WORK          the paper's recipe, S = 64 -> 128 -> 256, for GPUs
#     scripts/train_all.sh VIDEOS WORK small    every stage once, short, from the bundled models, S = 64: on two CPU
#                                               cores it makes them fit the people of minutes of video
#
# Stop it whenever you like; the same command goes on where it stopped. GPUS=4 trains on four GPUs of this machine.
# WORK holds the prepared data, one run directory a stage (tensorboard --logdir WORK) and at last the generator.
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

syncnet() { stage "$1" train_syncnet.py --config "configs/$1.yaml" "${@:2}"; }
generator() { stage "$1" train_dinet.py --config "configs/$1.yaml" "${@:2}"; }

size=256
[[ ${3:-} == small ]] && size=64
"$python" -m data_processing.prepare "$videos" --output "$data" --mouth-size "$size"

if [[ ${3:-} == small ]]; then
    syncnet syncnet_32 --max-steps 100 --init-from checkpoints/syncnet_32.safetensors
    generator finetune_64 --init-from checkpoints/dinet_64.safetensors
    generator bundled_64_clip --max-steps 40 --init-from "$(of finetune_64 best)" \
        --syncnet "$(of syncnet_32 syncnet)"
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
echo "trained: $work/dinet_$size.safetensors; the bundled example dubbed with it: $work/dub.mp4 ($SECONDS s)"
