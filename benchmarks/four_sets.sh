#!/usr/bin/env bash
# Runs adapt -> distill -> train -> evaluate on Kvasir-SEG, ISIC 2017, HC18 and BUSI: pooled, and each alone.
#
#   benchmarks/four_sets.sh DATA OUT [pooled] [kvasir] [isic2017] [hc18] [busi]
#
# DATA holds the four sets under the names of their official downloads (configs/datasets/pooled.yaml). Small sizes for a
# CPU: 128 pixels, ResNet-18, a small ViT from scratch as teacher. docs/log/results.md tells what came out.
set -euo pipefail
data=$(cd "$1" && pwd) out=$2
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bundle=$root/bundles/kdsam_deepgrow_2d

# phase NAME [OVERLAY ...] -- [OPTION ...]: one run of the bundle on $set.
phase() {
    local files="'$bundle/configs/train.yaml'" name=$1
    shift
    [[ $name == train ]] || files+=",'$bundle/configs/$name.yaml'"
    files+=",'$root/configs/datasets/$set.yaml','$root/configs/offline.yaml'"
    while [[ $1 != -- ]]; do
        files+=",'$root/configs/$1.yaml'"
        shift
    done
    shift
    python -W ignore -m monai.bundle run --config_file "[$files]" --bundle_root "$bundle" --dataset_dir "$folder" \
        --output_dir "$out/$set" --ckpt_dir "$out/$set/models" --image_size 128 --backbone resnet18 --teacher vit_tiny \
        --batch_size 16 --num_workers 0 --cache_rate 1.0 --bfloat16 True --progress False --log_interval 20 "$@"
}

report() { phase evaluate "${@:2}" --report_dir "$out/$set/report/$1"; }

for set in "${@:-pooled}"; do
    case $set in
        pooled) folder=$data adapt=24 distill=8 train=${TRAIN_EPOCHS:-20} ;;
        kvasir) folder=$data/Kvasir-SEG adapt=3 distill=2 train=3 ;;
        isic2017) folder=$data adapt=3 distill=2 train=3 ;;
        hc18) folder=$data/HC18 adapt=6 distill=4 train=6 ;;
        busi) folder=$data/Dataset_BUSI_with_GT adapt=4 distill=2 train=4 ;;
        *) echo "Expected pooled, kvasir, isic2017, hc18 or busi, got $set." >&2 && exit 2 ;;
    esac
    mkdir -p "$out/$set"
    phase adapt -- --epochs "$adapt" --val_interval 4 --learning_rate 0.0005 --bce_weight 1.0
    phase distill -- --epochs "$distill" --val_interval 4 --learning_rate 0.001
    phase train -- --epochs "$train" --val_interval 2 --learning_rate 0.0005 --bce_weight 1.0 --frozen "['prompt_encoder']"
    report filled_box -- --network "{'_target_': 'monai_kdsam.report.FillBox'}"
    report filled_ellipse -- --network "{'_target_': 'monai_kdsam.report.FillBox', 'shape': 'ellipse'}"
    report teacher evaluate_teacher --
    report distilled -- --checkpoint "$out/$set/models/distilled.pt"
    report student --
done
