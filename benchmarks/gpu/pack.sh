#!/bin/bash
# usage: pack.sh DEST SHARED [MODEL] -- copies what benchmarks/gpu/all.sh needs into DEST, in two loads that fit
# a transfer limit of 64 MiB each:
#   DEST/one   the first 40 MB of the weights, tokenizer and config, adapter, SST-2, recorded logits
#   DEST/two   the rest of the weights
# SHARED is the folder with adapters/, glue/ and golden/; MODEL the all-MiniLM-L6-v2 folder (the demo package's if left out).
set -euo pipefail
dest=$1 shared=$2
model=${3:-$(python -c 'from quantkit.data.demo import demo_model_dir; print(demo_model_dir())')}
rm -rf "$dest/one" "$dest/two"
mkdir -p "$dest/one/model" "$dest/one/adapters" "$dest/one/glue" "$dest/one/golden" "$dest/two"
for file in config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt; do
    cp "$model/$file" "$dest/one/model/"
done
split --bytes=40000000 --numeric-suffixes "$model/model.safetensors" "$dest/two/weights."
mv "$dest/two/weights.00" "$dest/one/"
cp -r "$shared/adapters/sst2" "$dest/one/adapters/"
cp -r "$shared/glue/SST-2" "$dest/one/glue/"
cp -r "$shared/golden/minilm_sst2" "$dest/one/golden/"
chmod -R u+w "$dest"
du -sh "$dest/one" "$dest/two"
