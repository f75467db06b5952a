#!/usr/bin/env bash
# Boots Debian's kernel in a machine that speaks Hyper-V and shows what it
# found: the detection line, the VMBus version, the devices with their drivers,
# the boot phases, and the exit code of a command.
set -euo pipefail
cd "$(dirname "$0")/.."
KERNEL=${KERNEL:-6.12}
hv=./hvpost
say() { printf '\n== %s\n' "$*"; }

say "kernel: Debian $KERNEL"
$hv kernel fetch "debian:$KERNEL"

say "this machine's KVM"
$hv doctor | sed -n '1,4p' || true

result=$(mktemp)
trap 'rm -f "$result"' EXIT

say "boot it with 2 processors"
# The program in the guest: what Linux found.
show='
dmesg | grep -E "Hypervisor detected|Hyper-V: |Vmbus version|hv_utils|clocksource: Switched"
echo
echo "/sys/bus/vmbus/devices:"
for d in /sys/bus/vmbus/devices/*; do
	echo "  $(basename $d)  $(basename $(readlink $d/driver))"
done
echo
echo "$(nproc) processors, $(uname -sr), $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
exit 7
'
code=0
$hv run -k "debian:$KERNEL" -c 2 --result "$result" -- sh -c "$show" || code=$?

say "boot phases, in ms since the process started"
sed -n '/"boot_ms"/,/}/p' "$result" | grep -E '[a-z_]+": [0-9]' | tr -d '",'

say "VMBus devices as the monitor saw them"
grep -E '"(version|name|state|driver)":' "$result" | tr -d '",' | sed 's/^ *//' | paste -sd' ' | sed 's/ name:/\n  name:/g'

say "the command in the guest said: exit 7; hvpost exited with $code"
[ "$code" = 7 ]
