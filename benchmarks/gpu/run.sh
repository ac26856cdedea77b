#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What is to be known of a GPU, offline, in blocks of less than nine minutes that leave results even when cut.
#
#   benchmarks/gpu/run.sh PACK OUT [tests|speed|student ...] [--mini] [--epochs N] [--case NAME]
#
# PACK is pack.sh's archive. It is unpacked into $WORK (/tmp/kdsam_gpu), where a second call finds it again.
#   tests    pytest -m gpu                                                -> OUT/tests.log
#   speed    images/s and memory of embed, distill and train, or of --case -> OUT/speed.jsonl, OUT/gpu_CARD.json
#   student  the shipped student learns on; a second call goes on with it -> OUT/model.pt, model.json, student.log
# --mini does all of it on a CPU, small. PYTHON=... names another Python.
set -uo pipefail
HERE=$(cd "$(dirname "$0")" && pwd) PYTHON=${PYTHON:-python3} WORK=${WORK:-/tmp/kdsam_gpu}
PACK=$(realpath "$1") OUT=$(realpath -m "$2"); shift 2
BLOCKS='' MINI='' EPOCHS='' CASES=()
while [ $# -gt 0 ]; do
    case $1 in
        tests | speed | student) BLOCKS+=" $1" ;;
        --mini) MINI=--mini ;;
        --epochs) EPOCHS="--epochs $2"; shift ;;
        --case) CASES+=("$2"); shift ;;
        *) echo "Unknown word $1: expected tests, speed, student, --mini, --epochs N or --case NAME." >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$WORK" "$OUT" || exit 1
if [ ! -e "$WORK/ready" ]; then
    set -e
    tar -xJf "$PACK" -C "$WORK"
    (cd "$WORK" && sha256sum --quiet -c SHA256SUMS)
    # A venv of a venv does not see the packages of that one: a .pth file names them.
    "$PYTHON" -m venv --without-pip "$WORK/venv"
    "$PYTHON" -c "import sys; print(*(p for p in sys.path if p.endswith('-packages')), sep='\n')" \
        > "$(echo "$WORK"/venv/lib/python3*/site-packages)/borrowed.pth"
    # Only what the machine lacks is installed.
    "$PYTHON" -m pip -q --python "$WORK/venv/bin/python" --disable-pip-version-check install --no-index --no-deps \
        --find-links "$WORK/wheels" -r "$WORK/requirements.txt"
    "$WORK/venv/bin/python" "$HERE/reduce.py" "$WORK" --restore
    touch "$WORK/ready"
    set +e
fi
CODE=$WORK/code
[ -d "$CODE" ] || CODE=$(cd "$HERE/../.." && pwd)
PYTHON=$WORK/venv/bin/python
export PYTHONPATH=$CODE:$CODE/benchmarks/gpu PYTHONUNBUFFERED=1 KDSAM_COMMIT=$(cat "$WORK/commit.txt")
cd "$CODE" || exit 1

run_tests() {
    local only=(-m gpu)
    [ -z "$MINI" ] || only=(-k cpu)
    timeout 530 "$PYTHON" -m pytest -p no:cacheprovider -rs --durations 10 "${only[@]}" tests/test_gpu.py 2>&1 | tee "$OUT/tests.log"
}

run_speed() {
    local cases=()
    [ ${#CASES[@]} -eq 0 ] || cases=(--cases "${CASES[@]}")
    [ -z "$MINI" ] || cases=(--cases "train, lite0, 512 px")
    timeout 530 "$PYTHON" benchmarks/gpu/measure.py "$WORK/datalist.json" "$OUT" $MINI "${cases[@]}"
}

run_student() {
    local bundle=bundles/kdsam_deepgrow_2d state=$WORK/student small=() resume=() files='' workers=$(($(nproc) - 2)) status
    for name in $bundle/configs/train.yaml configs/datasets/datalist.yaml configs/recipes/promptable.yaml \
        configs/recipes/any_looks.yaml benchmarks/gpu/student.yaml; do
        files+="${files:+,}'$name'"
    done
    [ -z "$MINI" ] || small=(--image_size 64 --batch_size 4 --epochs 1) workers=0
    [ ! -e "$state/train_state.pt" ] || resume=(--resume True)
    # shellcheck disable=SC2086
    timeout 530 "$PYTHON" -W ignore -m monai.bundle run --config_file "[$files]" --bundle_root $bundle \
        --dataset_dir "$WORK/datalist.json" --output_dir "$state" --best_checkpoint "$state/model.pt" \
        --num_workers $((workers > 0 ? workers : 0)) --progress False $EPOCHS "${small[@]}" "${resume[@]}" 2>&1 | tee -a "$OUT/student.log"
    status=$?
    cp "$state"/model.pt "$state"/model.json "$OUT" || status=1  # the best moving average so far
    return $status
}

failed=0
for block in ${BLOCKS:-tests speed student}; do
    echo "== $block"
    "run_$block" || { failed=1; echo "== $block failed or was cut: what it left is in $OUT" >&2; }
done
exit $failed
