#!/usr/bin/env bash
# A quarter of an hour on one card: trains the built-in model on from the shipped weights. See README.md beside this file.
# usage: tools/train_tiny/quarter_hour.sh OUT [MINUTES]     from the project's root; MINUTES of training (default: 11)
# DEVICE=cpu SCALE=1 STEPS=2: the same in a few steps, to see that it runs. WORK: where the state lies (default: OUT.work).
# Again with the same WORK, it goes on where the last call ended; OUT holds what is to be taken home, 12 MB a checkpoint.
set -euo pipefail
out=$1 minutes=${2:-11} work=${WORK:-$1.work} device=${DEVICE:-cuda} scale=${SCALE:-4} python=${PYTHON:-python3}
first=$("$python" -c 'from tools.train_tiny.curriculum import STAGES; print(sum(stage.steps for stage in STAGES[:-1]))')
cores=$(getconf _NPROCESSORS_ONLN)
workers=$((cores > 2 ? cores - 2 : 1))
mkdir -p "$out" "$work"
train() { # STEPS MINUTES ARGUMENT...: from the shipped weights, or from where WORK stands
  "$python" -m tools.train_tiny train --start-from models/tiny_ocr --start-step "$first" --device "$device" \
    --scale "$scale" --workers "$workers" --steps "$1" --minutes "$2" "${@:3}"
}

# 1. Ten steps of their own: what does not work on this card shows now, and not at the end.
train $((first + ${STEPS:-10})) 2 --run-dir "$work/try" --warmup 2 --export "$work/tried"
echo "ten steps ran; training for $minutes minutes"

# 2. The last stage: both halves, all prompts; a new probe learns for 200 steps before it teaches; then the rate falls.
train $((first + ${STEPS:-1000000})) "$minutes" --run-dir "$work/run" --warmup 200 \
  --decay-minutes "$(awk "BEGIN { print 0.45 * $minutes }")" --export "$work/after"
cp "$work/run/log.jsonl" "$out/log.jsonl"
cp "$work/after/model.safetensors" "$out/after.safetensors"

# 3. Means with what was there, which read plain lines better than either (Recipe).
"$python" -m tools.train_tiny mean models/tiny_ocr "$work/after" --export "$work/half"
"$python" -m tools.train_tiny mean models/tiny_ocr "$work/after" "$work/after" --export "$work/two_thirds"
for kind in half two_thirds; do cp "$work/$kind/model.safetensors" "$out/$kind.safetensors"; done

# 4. A first look while the card is there; python -m tools.aims --checkpoint at home is what decides.
for folder in models/tiny_ocr "$work/half" "$work/two_thirds" "$work/after"; do
  echo "$folder"
  "$python" -m tools.train_tiny evaluate "$folder" --device "$device" --pages "${PAGES:-8}" \
    --categories one_line,clean,receipts,invoices,tables,latin
done | tee "$out/scores.md"
