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
# The tests of KVM and of the machine ran on this machine's own KVM, if it has
# one; here they run on a real one.
if [ -n "$started" ] || ./hvpost host status >/dev/null 2>&1; then
	go test -count=1 -exec "$PWD/hvpost host exec --" ./kvm ./vmm
fi
go test -tags guest -count=1 -timeout 30m -run "${RUN:-TestGuest}" -v . 2>&1 | grep -vE '^=== (RUN|PAUSE|CONT)'
