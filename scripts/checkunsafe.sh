#!/usr/bin/env bash
# Package unsafe is for files named *_unsafe.go in kvm/ and guest/ only.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=$(git ls-files '*.go' | grep -Ev '^(kvm|guest)/.*_unsafe(_test)?\.go$' | xargs -r grep -lE '^(import )?[[:space:]]*"unsafe"' || true)
if [ -n "$bad" ]; then
	echo "unsafe outside kvm/ and guest/ *_unsafe.go:" >&2
	echo "$bad" >&2
	exit 1
fi
