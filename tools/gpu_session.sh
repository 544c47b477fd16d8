#!/usr/bin/env bash
# One card, a quarter of an hour: what to run, in order, each part within its own time. See tools/docs/cuda.md.
# usage: tools/gpu_session.sh OUT WORK [TOKENIZER.json]
set -uo pipefail
out=$(realpath -m "$1") work=$(realpath -m "$2") tokenizer=${3:-}
mkdir -p "$out" "$work"
python=${PYTHON:-python3}
part() { # NAME SECONDS COMMAND...: a part that fails or takes too long ends, and the next one begins
  local name=$1 seconds=$2; shift 2
  local began=$SECONDS
  timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
  echo "$name: status $?, $((SECONDS - began)) s; $(tail -n 1 "$out/$name.txt" | cut -c1-150)" | tee -a "$out/summary.txt"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/card.txt"

# 1. Right: small models, every dtype, both families. Minutes; whatever fails here makes figures below worthless.
part right 180 "$python" -m pytest -m gpu tests/runtime/test_on_a_gpu.py -q -s -p no:cacheprovider

# 2. Full-size exports, checked on the card by the exporter itself (its log says so), side by side.
[ -d "$work/full" ] || part checkpoint 120 "$python" -m tools.checkpoints "$work/full" --full ${tokenizer:+--tokenizer "$tokenizer"}
for dtype in f16 bf16 q4; do
  part "export-$dtype" 240 "$python" -m export deepseek-ocr --source "$work/full" --dtype $dtype --output "$work/$dtype" &
done
wait

# 3. Fast: the part whose bars the README has comes first. One round is enough: a card repeats itself.
bench() { "$python" -m tools.bench run --device cuda --rounds 2 --model "$work/$1" --parts "$2" --json "$out/$3.json" "${@:4}"; }
export -f bench; export python work out
part page-f16 120 bash -c 'bench f16 load,page,overhead page-f16'
part decode-f16 90 bash -c 'bench f16 vision,prefill,decode,batch decode-f16'
part server-f16 150 bash -c 'bench f16 server server-f16'
part page-q4 90 bash -c 'bench q4 load,decode,page page-q4'
part peer 120 "$python" -m tools.bench run --device cuda --rounds 1 --model "$work/f16" --full "$work/full" --dtypes f16 \
  --exports "$work" --peers transformers --torch-dtypes bf16 --parts decode,batch --json "$out/peer.json"
part bf16 60 bash -c 'bench bf16 decode,batch bf16'
cat "$out/summary.txt"
