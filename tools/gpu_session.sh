#!/usr/bin/env bash
# One card, a quarter of an hour: what to run, in order, each part within its own time. See tools/docs/cuda.md.
# usage: tools/gpu_session.sh prepare|measure|all OUT WORK [TOKENIZER.json]
#   prepare: what is missing is unpacked, tests marked gpu, full-size exports (about 5 minutes)
#   measure: the figures, those with a bar in the README first (under 10 minutes); wants the exports of prepare in WORK
set -uo pipefail
what=$1 out=$(realpath -m "$2") work=$(realpath -m "$3") tokenizer=${4:-}
mkdir -p "$out" "$work"
site=${SITE:-/tmp/site} wheels=${WHEELS:-.gpu/d} python=${PYTHON:-python3}
export PYTHONPATH=$site:$PWD${PYTHONPATH:+:$PYTHONPATH}
part() { # NAME SECONDS COMMAND...: a part that fails or takes too long ends, and the next one begins
  local name=$1 seconds=$2 began=$SECONDS; shift 2
  timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
  local status=$?
  echo "$name: status $status, $((SECONDS - began)) s; $(tail -n 1 "$out/$name.txt" | cut -c1-150)" | tee -a "$out/summary.txt"
  return $status
}

prepare() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/card.txt"
  # 0. What the machine lacks travels as wheels (tools/gpu_wheels.py); better to hear now what is still missing.
  [ ! -d "$wheels" ] || part unpack 60 "$python" tools/gpu_wheels.py unpack "$wheels" "$site"
  part needs 60 "$python" -c "import hypothesis, onnx, onnxscript, onnxruntime, pytest, runtime, tokenizers, torch, transformers
assert 'CUDAExecutionProvider' in onnxruntime.get_available_providers(), onnxruntime.get_available_providers()
print('nothing is missing')" || return 1

  # 1. Right: small models of every family, every dtype. The first family's tests first: what fails here makes figures
  # below worthless. The exports beside them use processors, and the card for seconds only.
  (
    part right 240 "$python" -m pytest -m gpu tests/runtime/test_on_a_gpu.py -q -s -p no:cacheprovider -k "deepseek-ocr- or candidates or alike"
    part right-all 300 "$python" -m pytest -m gpu tests/runtime/test_on_a_gpu.py -q -s -p no:cacheprovider -k "not (deepseek-ocr- or candidates or alike)"
  ) &

  # 2. Full-size exports, checked on the card by the exporter itself (its log says so), side by side.
  [ -d "$work/full" ] || part checkpoint 120 "$python" -m tools.checkpoints "$work/full" --full ${tokenizer:+--tokenizer "$tokenizer"}
  for dtype in f16 bf16 q4; do
    part "export-$dtype" 240 "$python" -m export deepseek-ocr --source "$work/full" --dtype $dtype --output "$work/$dtype" &
  done
  wait
}

bench() { "$python" -m tools.bench run --device cuda --rounds 2 --model "$work/$1" --parts "$2" --json "$out/$3.json" "${@:4}"; }
export -f bench; export python work out

measure() {
  # 3. Fast: the part whose bars the README has comes first. Two rounds are enough: a card repeats itself.
  part page-f16 120 bash -c 'bench f16 load,page,overhead page-f16'
  part decode-f16 90 bash -c 'bench f16 vision,prefill,decode,batch decode-f16'
  part two-ways 90 "$python" -m tools.two_ways "$work/f16" --device cuda
  part server-f16 110 bash -c 'bench f16 server server-f16'
  part page-q4 60 bash -c 'bench q4 load,decode,page page-q4'
  part peer 90 "$python" -m tools.bench run --device cuda --rounds 1 --model "$work/f16" --full "$work/full" --dtypes f16 \
    --exports "$work" --peers transformers --torch-dtypes bf16 --parts decode,batch --json "$out/peer.json"
  part bf16 40 bash -c 'bench bf16 decode,batch bf16'
}

case $what in
  prepare) prepare ;;
  measure) measure ;;
  all) prepare && measure ;;
  *) echo "say prepare, measure or all, and not $what" >&2; exit 2 ;;
esac
cat "$out/summary.txt"
