#!/usr/bin/env bash
# Runs every fuzz target: fuzz.sh [TIME] [CORE_TIME]. The parsers of what a
# running guest sends all the time (rings, control plane, GPADLs, hypercalls,
# MSRs) get CORE_TIME, the others TIME; CORE_TIME is TIME unless given.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s}
core=${2:-$time}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n=0
for dir in $(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -n1 dirname | sort -u); do
	go test -c -fuzz '^Fuzz' -o "$work/fuzz.test" "$dir"
	for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | cut -c6- | sort -u); do
		t=$time
		case "$dir/$target" in
		./synic/Fuzz* | ./vmbus/Fuzz* | ./vmbus/ring/Fuzz*) t=$core ;;
		esac
		out=$(cd "$dir" && "$work/fuzz.test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$t" \
			-test.fuzzminimizetime 100x -test.fuzzcachedir "$work/corpus" 2>&1) || {
			printf '%s\n' "$out"
			echo "fuzz: $dir $target failed; the input is in $dir/testdata/fuzz/$target" >&2
			exit 1
		}
		echo "fuzz $dir $target $t: $(grep -oE 'execs: [0-9]+' <<<"$out" | tail -n 1)"
		n=$((n + 1))
	done
done
echo "fuzz: $n targets, no failures"
