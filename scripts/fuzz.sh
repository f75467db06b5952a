#!/usr/bin/env bash
# Runs every fuzz target of the module for the time given (default 10s each).
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s}
n=0
for dir in $(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -n1 dirname | sort -u); do
	for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | cut -c6- | sort -u); do
		echo "fuzz $dir $target $time"
		out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 100x "$dir" 2>&1) || {
			printf '%s\n' "$out"
			echo "fuzz: $dir $target failed; the input is in $dir/testdata/fuzz/$target" >&2
			exit 1
		}
		printf '%s\n' "$out" | tail -n 3 | grep -E 'execs' | tail -n 1 || true
		n=$((n + 1))
	done
done
echo "fuzz: $n targets, no failures"
