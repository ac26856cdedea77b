#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One archive with all that run.sh needs on a machine with a GPU and no network: Python 3.12 with torch, torchvision and pip.
#
#   benchmarks/gpu/pack.sh OUT.tar.xz [--data FOLDER] [--images N] [--quality Q] [--have "NAMES"] [--no-code] [--mini]
#
# --data     folder with datalist.json, images/ and masks/; its longer sides are at most 512 pixels afterwards
# --images   at most so many for training (default: all); the validation images all come along, up to a quarter of N
# --quality  of WebP (60)
# --have     packages that the machine has, of those below, so that their wheels stay at home: "scipy scikit-image"
# --no-code  run.sh then uses the tree that it lies in
# --mini     generated pictures and no wheels, for a test: nothing is downloaded
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd) ROOT=$(cd "$(dirname "$0")/../.." && pwd) PYTHON=${PYTHON:-python3} LIMIT=60000000
OUT=$(realpath -m "$1"); shift
DATA='' IMAGES='' QUALITY=60 HAVE='' CODE=yes MINI=''
while [ $# -gt 0 ]; do
    case $1 in
        --data) DATA=$(realpath "$2"); shift ;;
        --images) IMAGES=$2; shift ;;
        --quality) QUALITY=$2; shift ;;
        --have) HAVE=$2; shift ;;
        --no-code) CODE='' ;;
        --mini) MINI=yes ;;
        *) echo "Unknown option $1." >&2; exit 2 ;;
    esac
    shift
done
# What the runs import beyond torch, torchvision and what these bring along: SimpleITK is not among it.
NAMES="monai pydicom pytorch-ignite nibabel segment-anything timm pytorch-msssim scipy scikit-image safetensors fire termcolor pyyaml tqdm
    tensorboard protobuf absl-py lazy-loader imageio tifffile packaging filelock pytest pluggy iniconfig pygments"
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
mkdir -p "$FOLDER/wheels" "$FOLDER/images" "$FOLDER/masks"
for name in $NAMES; do
    [[ " $HAVE " == *" $name "* ]] || echo "$name" >> "$FOLDER/requirements.txt"
done
if [ -n "$MINI" ]; then
    : > "$FOLDER/requirements.txt"
else
    platforms=$(for glibc in 28 27 24 17; do printf -- '--platform manylinux_2_%s_x86_64 ' $glibc; done)
    # shellcheck disable=SC2086
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
        --platform manylinux2014_x86_64 -d "$FOLDER/wheels" -r "$FOLDER/requirements.txt"
fi
"$PYTHON" "$HERE/reduce.py" "$FOLDER" ${DATA:+--data "$DATA"} ${IMAGES:+--images "$IMAGES"} --quality "$QUALITY"
rm -rf "$FOLDER/phantoms"
if [ -n "$CODE" ]; then
    mkdir "$FOLDER/code"
    git -C "$ROOT" archive HEAD monai_kdsam bundles configs benchmarks tests pyproject.toml | tar -x -C "$FOLDER/code"
fi
git -C "$ROOT" rev-parse HEAD > "$FOLDER/commit.txt"
(cd "$FOLDER" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS)
LEVEL=-6; [ -z "$MINI" ] || LEVEL=-0
tar -c -C "$FOLDER" . | xz $LEVEL > "$OUT.part"
size=$(stat -c %s "$OUT.part")
if [ "$size" -gt $LIMIT ]; then
    rm "$OUT.part"
    echo "The pack would have $size bytes and may have $LIMIT: fewer --images, a lower --quality, or more that the machine --have." >&2
    exit 1
fi
mv "$OUT.part" "$OUT"
echo "$OUT: $size bytes, SHA-256 $(sha256sum < "$OUT" | cut -d ' ' -f 1)"
