# Functions for scripts that train several networks; source this file with $data and $work set.
python=.venv/bin/python
[[ -x $python ]] || { echo "error: no $python; run 'make .venv/.weights' first" >&2; exit 2; }
launch=("$python")
[[ ${GPUS:-1} -gt 1 ]] && launch=("$python" -m torch.distributed.run --standalone --nproc-per-node "$GPUS")

# stage NAME COMMAND FLAGS…: one training run in $work/NAME; resumed if it was interrupted, skipped if finished
stage() {
    local name=$1 command=$2 began=$SECONDS resume=()
    shift 2
    if [[ ! -e $work/$name/finished ]]; then
        [[ -e $work/$name/state.pt ]] && resume=(--resume)
        "${launch[@]}" "$command" --data "$data" --run-dir "$work/$name" "$@" "${resume[@]}"
        touch "$work/$name/finished"
        echo "=== $name: $((SECONDS - began)) s"
    fi
}
# of NAME FILE: path of a checkpoint of a run
of() { echo "$work/$1/$2.safetensors"; }
