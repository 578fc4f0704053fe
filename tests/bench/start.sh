#!/usr/bin/env bash
# Time until the first token of 4 ranks on 4 hosts of the lab, started over ssh: tests/bench/start.sh MODEL [ROUNDS]
# The page cache is warm from the second round on. Needs what the lab needs. One line per round: seconds from the command to
# the first byte of the answer, then what weft itself says about them.
set -eu
model=$(realpath "$1")
export MODEL="$model" ROUNDS="${2:-5}"
cd "$(dirname "$0")/../.."
export WEFT="${WEFT_BUILD:-build}/weft"

# shellcheck disable=SC2016 # the variables are the lab's
exec tests/e2e/lab/lab.sh 4 bash -c '
for round in $(seq "$ROUNDS"); do
    begin=$(date +%s%N)
    "$LAB/on" 0 "$WEFT" run --hosts node0,node1,node2,node3 --ssh "$LAB/rsh" --model "$MODEL" --prompt "one two three" \
        --max-tokens 2 --temperature 0 --ignore-eos --threads 1 --verbose 2> "$LAB/start.log" |
        { IFS= read -r -N 1 _; end=$(date +%s%N); cat > /dev/null; echo "$(((end - begin) / 1000000)) ms"; }
    grep -ohE "start: .*|first token after .*ms" "$LAB/start.log"
done'
