# For scripts that train several networks one after another; sourced, with $data and $work set.
python=.venv/bin/python
[[ -x $python ]] || { echo "error: no $python; run 'make .venv/.weights' first" >&2; exit 2; }
launch=("$python")
[[ ${GPUS:-1} -gt 1 ]] && launch=("$python" -m torch.distributed.run --standalone --nproc-per-node "$GPUS")

# stage NAME SCRIPT FLAGS…: one training, done once; it goes on where it was stopped
stage() {
    local name=$1 script=$2 began=$SECONDS resume=()
    shift 2
    if [[ ! -e $work/$name/finished ]]; then
        [[ -e $work/$name/state.pt ]] && resume=(--resume)
        "${launch[@]}" "$script" --data "$data" --run-dir "$work/$name" "$@" "${resume[@]}"
        touch "$work/$name/finished"
        echo "=== $name: $((SECONDS - began)) s"
    fi
}
of() { echo "$work/$1/$2.safetensors"; }
