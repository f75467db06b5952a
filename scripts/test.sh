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
part "kernels" ./hvpost kernel fetch debian:6.12 debian:6.1 debian:6.12:amd64
part "unit tests" make -s unit
part "race tests" make -s race
part "guest tests" scripts/guest-test.sh
part "fuzzing" scripts/fuzz.sh "${FUZZTIME_OTHERS:-3s}" "$FUZZTIME"
echo "--- all passed in $SECONDS s"
