#!/usr/bin/env bash
# Compares "hvpost run -- true" with QEMU on the same KVM, kernel and memory,
# in one run, as ratios. Without a KVM that runs Linux it does so inside the
# emulated host. RUNS (default 5) runs each, alternating.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-5}
here=$PWD

if [ -z "${HVPOST_EMUHOST:-}" ] && ! ./hvpost doctor >/dev/null 2>&1; then
	started=
	./hvpost host status >/dev/null 2>&1 || { ./hvpost host up; started=1; }
	code=0
	./hvpost host exec -- "$here/scripts/bench-boot.sh" || code=$?
	[ -z "$started" ] || ./hvpost host down
	exit $code
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
kernel=$(./hvpost kernel path debian:6.12 | awk -F'\t' '$1=="image"{print $2}')

# The baseline's guest: a shell that resets at once.
busybox=$(command -v busybox || true)
if [ -z "$busybox" ] || file -L "$busybox" 2>/dev/null | grep -q dynamically; then
	echo "bench-boot: needs busybox-static: apt-get install busybox-static" >&2
	exit 1
fi
mkdir -p "$work/root/bin" "$work/root/proc"
cp "$busybox" "$work/root/bin/busybox"
cat >"$work/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox reboot -f
INIT
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc -R 0:0 2>/dev/null) >"$work/initrd"

qemu() {
	qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 512 -display none -serial stdio -no-reboot -nodefaults \
		-kernel "$kernel" -initrd "$work/initrd" -append "console=ttyS0 panic=-1 quiet mitigations=off reboot=t" </dev/null >/dev/null 2>&1
}
ours() {
	./hvpost run -q -k debian:6.12 -m 512M --host kvm --result "$work/result.json" -a mitigations=off -- true
}
ms() { date +%s%3N; }
timed() { # command; prints ms
	local a b
	a=$(ms)
	"$1" || true
	b=$(ms)
	echo $((b - a))
}
field() { sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p" "$work/result.json" | head -1; }

ours && qemu || true # warm both
for i in $(seq "$RUNS"); do
	q=$(timed qemu)
	o=$(timed ours)
	echo "$q $o $(field first_run) $(field agent) $(field end)"
done | tee "$work/runs" | awk '{printf "run %d: QEMU %d ms, hvpost %d ms, ratio %.2f; first instruction %.0f ms, agent %.0f ms\n", NR, $1, $2, $2/$1, $3, $4}'
median() { sort -n | awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}'; }
q=$(awk '{print $1}' "$work/runs" | median)
o=$(awk '{print $2}' "$work/runs" | median)
f=$(awk '{print $3}' "$work/runs" | median)
awk -v q="$q" -v o="$o" -v f="$f" 'BEGIN {
	printf "median: QEMU %d ms, hvpost %d ms, ratio %.2f (goal 0.75)\n", q, o, o/q
	printf "median: first guest instruction after %.0f ms (goal 150)\n", f
}'

# Memory: what the process holds beyond the guest's own pages, and what an
# idle guest costs.
./hvpost run -q -k debian:6.12 -m 512M --host kvm -- sleep 30 &
pid=$!
sleep 12
rss=$(awk '/^Rss(Anon|File):/{n+=$2} END{print n}' "/proc/$pid/status")
guest=$(awk '/^[0-9a-f]+-[0-9a-f]+ /{big=0} /^Size:/{big=($2>=1024*512)} /^Rss:/{if(big)n+=$2} END{print n+0}' "/proc/$pid/smaps")
t0=$(awk '{print $14+$15}' "/proc/$pid/stat")
sleep 10
t1=$(awk '{print $14+$15}' "/proc/$pid/stat")
awk -v r="$rss" -v g="$guest" 'BEGIN {printf "resident beyond guest memory: %.1f MiB (goal 48)\n", (r-g)/1024}'
awk -v t="$((t1 - t0))" -v hz="$(getconf CLK_TCK)" 'BEGIN {printf "idle guest: %.2f %% of a core over 10 s, guest time included\n", t*100/hz/10}'
kill "$pid" 2>/dev/null || true
wait "$pid" 2>/dev/null || true
