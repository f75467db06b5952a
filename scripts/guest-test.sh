#!/usr/bin/env bash
# The guest tests: real kernels under ./hvpost, on this machine's KVM or in an
# emulated host that is started once for all of them.
set -euo pipefail
cd "$(dirname "$0")/.."
started=
if ! ./hvpost doctor >/dev/null 2>&1; then
	./hvpost doctor | sed -n '1,2p' || true
	if ! ./hvpost host status >/dev/null 2>&1; then
		./hvpost host up
		started=1
	fi
fi
cleanup() { [ -z "$started" ] || ./hvpost host down; }
trap cleanup EXIT
go test -tags guest -count=1 -timeout 30m -run "${RUN:-TestGuest}" -v . 2>&1 | grep -vE '^=== (RUN|PAUSE|CONT)'
