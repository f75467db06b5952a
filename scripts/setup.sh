#!/usr/bin/env bash
# Installs what building, testing and the demo need and this machine lacks,
# from Debian's or Ubuntu's own packages. Says nothing if nothing is missing.
set -euo pipefail

missing=()
need() { # command, package
	command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need qemu-system-x86_64 qemu-system-x86
need iasl acpica-tools
need cpio cpio
need busybox busybox-static # bench-boot.sh wants a static one
need file file
need gcc gcc # for go test -race
need make make

if ((${#missing[@]})); then
	echo "setup: installing ${missing[*]}" >&2
	sudo=
	if [ "$(id -u)" -ne 0 ]; then
		sudo=sudo
		command -v sudo >/dev/null || {
			echo "setup: not root and no sudo; as root, run: apt-get install ${missing[*]}" >&2
			exit 1
		}
	fi
	export DEBIAN_FRONTEND=noninteractive
	$sudo apt-get update -qq
	$sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v go >/dev/null || {
	echo "setup: Go is missing; install it from https://go.dev/dl or with apt-get install golang" >&2
	exit 1
}
