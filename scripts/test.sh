#!/usr/bin/env bash
# Everything that make test runs, with the time that each part took.
set -euo pipefail
cd "$(dirname "$0")/.."
FUZZTIME=${FUZZTIME:-10s}
part() { # name, command...
	local name=$1 start=$SECONDS
	shift
	echo "--- $name"
	"$@"
	echo "--- $name: $((SECONDS - start)) s"
}
# What setup.sh installed must be there, and a device that opens must be used.
export HVPOST_NEED_IASL=1
if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
	export HVPOST_NEED_KVM=1
else
	echo "test: no /dev/kvm that this user may open: its tests run in the emulated host only"
fi
part "kernels" ./hvpost kernel fetch debian:6.12 debian:6.1 debian:6.12:amd64
part "unit tests" make -s unit
part "race tests" make -s race
part "guest tests" scripts/guest-test.sh
part "fuzzing" scripts/fuzz.sh "${FUZZTIME_OTHERS:-3s}" "$FUZZTIME"
echo "--- all passed in $SECONDS s"
