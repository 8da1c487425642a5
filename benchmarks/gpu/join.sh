#!/bin/bash
# usage: join.sh ONE TWO DATA -- puts the two loads of pack.sh together: DATA/model, DATA/adapters, DATA/glue, DATA/golden
set -euo pipefail
one=$1 two=$2 data=$3
mkdir -p "$data"
cp -r "$one/model" "$one/adapters" "$one/glue" "$one/golden" "$data/"
cat "$one/weights.00" "$two"/weights.[0-9][0-9] > "$data/model/model.safetensors"
