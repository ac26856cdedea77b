#!/bin/sh
# What the organizers of the CVPR challenges start in the container; see the Dockerfile.
exec python -m monai_kdsam predict-npz /workspace/inputs /workspace/outputs --model /workspace/model
