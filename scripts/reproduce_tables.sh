#!/usr/bin/env bash
# Reproduce the tables and figures of the paper from a prepared dataset:
#
#     scripts/reproduce_tables.sh DATA WORK          every network coarse to fine up to S = 256, for GPUs
#     scripts/reproduce_tables.sh DATA WORK small    minutes each, on two CPU cores; DATA prepared at S = 128 or more
#
# If it is interrupted, the same command resumes it. GPUS=4 trains on four GPUs of this machine.
# WORK receives one run directory per network (tensorboard --logdir WORK), the reports of evaluate.py in table1 and
# table2, and the tables and figures in results.
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 || ${3:-small} != small ]]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
data=$(realpath -m "$1")
work=$(realpath -m "$2")
cd "$(dirname "$0")/.."
source scripts/stage.sh

variant=${3:-full}
mkdir -p "$work"
[[ -e $work/variant ]] || echo "$variant" > "$work/variant"
if [[ $(< "$work/variant") != "$variant" ]]; then
    echo "error: WORK: $work holds the $(< "$work/variant") variant, not the $variant one; choose another folder" >&2
    exit 2
fi

ablations=(without_deformation without_inpainting attention flow)

# score TABLE ROW CHECKPOINT FLAGS…: evaluate.py on held-out speakers, unless done before
score() {
    [[ -e $work/$1/$2/evaluation.json ]] || "$python" evaluate.py --checkpoint "$3" --data "$data" --sync \
        --precision auto --frames-per-clip "$frames" --output "$work/$1/$2" "${@:4}"
}

if [[ $variant == small ]]; then
    # Table 2 is trained from scratch at S = 32; networks of Table 1 start from the next smaller one of their kind.
    final=dinet_64 size=128 frames=2
    train() { stage "$1" train_dinet.py --config "configs/stages/frame_$2.yaml" "${@:3}"; }
    small=configs/stages/tables_small.yaml
    dinets() {
        train full 32 $small --max-steps 500
        for name in "${ablations[@]}"; do
            train "$name" 32 "configs/ablations/$name.yaml" $small --max-steps 500
        done
        train dinet_64 64 $small --max-steps 120 --init-from "$(of full generator)"
    }
    wav2lips() {
        train wav2lip_96 64 configs/baselines/wav2lip_96.yaml $small --max-steps 350
        train wav2lip_192 128 configs/baselines/wav2lip_192.yaml $small --max-steps 50 --init-from "$(of wav2lip_96 generator)"
        train wav2lip_384 128 configs/baselines/wav2lip_384.yaml $small --max-steps 25 --init-from "$(of wav2lip_192 generator)"
    }
else
    final=full size=256 frames=8
    # fine NAME FLAGS…: coarse to fine, S = 64 -> 128 -> 256
    fine() {
        stage "$1_64" train_dinet.py --config configs/stages/frame_64.yaml "${@:2}"
        stage "$1_128" train_dinet.py --config configs/stages/frame_128.yaml "${@:2}" --init-from "$(of "$1_64" generator)"
        stage "$1" train_dinet.py --config configs/stages/frame_256.yaml "${@:2}" --init-from "$(of "$1_128" generator)"
    }
    dinets() {
        fine full
        for name in "${ablations[@]}"; do
            fine "$name" "configs/ablations/$name.yaml"
        done
    }
    wav2lips() {
        stage wav2lip_96 train_dinet.py --config configs/stages/frame_64.yaml configs/baselines/wav2lip_96.yaml
        stage wav2lip_192 train_dinet.py --config configs/stages/frame_128.yaml configs/baselines/wav2lip_192.yaml \
            --init-from "$(of wav2lip_96 generator)"
        stage wav2lip_384 train_dinet.py --config configs/stages/frame_256.yaml configs/baselines/wav2lip_384.yaml \
            --init-from "$(of wav2lip_192 generator)"
    }
fi
methods=(wav2lip_96 wav2lip_192 wav2lip_384)
dinets_scored() {
    dinets
    for name in full "${ablations[@]}"; do
        score table2 "$name" "$(of "$name" generator)"
    done
    score table1 "$final" "$(of "$final" generator)" --size "$size"
    score table1 bundled checkpoints/dinet_64.safetensors --size "$size"
}
wav2lips_scored() {
    wav2lips
    for name in "${methods[@]}"; do
        score table1 "$name" "$(of "$name" generator)" --size "$size"
    done
}
if [[ -n ${CHAIN:-} ]]; then  # one of the two halves, called below
    "$CHAIN"
    exit
elif [[ $variant == small ]]; then  # two halves in parallel with one thread each: faster than one after the other
    printf '%s\n' dinets_scored wav2lips_scored |
        OMP_NUM_THREADS=1 xargs -P 2 -I{} env CHAIN={} bash scripts/reproduce_tables.sh "$data" "$work" small
else
    dinets_scored
    wav2lips_scored
fi
methods+=("$final")
"$python" -m scripts.tables "$work" --output "$work/results"

# Figures 4 to 6
draw() { "$python" -m scripts.visualize "$1" --output "$work/results/$2.png" "${@:3}"; }
generators() { checkpoints=(); for name in "$@"; do checkpoints+=("$(of "$name" generator)"); done; }
draw generator figure4 --checkpoint "$(of "$final" generator)"
generators "${methods[@]}"
draw strips figure5 --data "$data" --size "$size" --checkpoints "${checkpoints[@]}" checkpoints/dinet_64.safetensors
generators full "${ablations[@]}"
draw strips figure6 --data "$data" --size "$size" --checkpoints "${checkpoints[@]}"
echo "tables and figures: $work/results ($SECONDS s)"
