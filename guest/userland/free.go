package userland

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

func uptime(c *ctx) int {
	if !c.getopt("ps", "pretty=p", "since=s") {
		return 1
	}
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	var up float64
	fmt.Sscan(string(b), &up)
	if c.has('s') {
		fmt.Fprintln(c.out, time.Now().Add(-time.Duration(up*1e9)).Format("2006-01-02 15:04:05"))
		return 0
	}
	m := int(up) / 60
	d, h := m/1440, m/60%24
	m %= 60
	if c.has('p') {
		var parts []string
		for _, p := range []struct {
			n    int
			unit string
		}{{d, "day"}, {h, "hour"}, {m, "minute"}} {
			if p.n > 0 {
				s := p.unit
				if p.n > 1 {
					s += "s"
				}
				parts = append(parts, fmt.Sprintf("%d %s", p.n, s))
			}
		}
		fmt.Fprintln(c.out, "up "+strings.Join(parts, ", "))
		return 0
	}
	s := fmt.Sprintf(" %s up ", time.Now().Format("15:04:05"))
	if d == 1 {
		s += "1 day, "
	} else if d > 1 {
		s += fmt.Sprintf("%d days, ", d)
	}
	if h > 0 {
		s += fmt.Sprintf("%2d:%02d", h, m)
	} else {
		s += fmt.Sprintf("%d min", m)
	}
	load, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(load))
	if len(f) >= 3 {
		s += ",  load average: " + strings.Join(f[:3], ", ")
	}
	fmt.Fprintln(c.out, s)
	return 0
}

func free(c *ctx) int {
	if !c.getopt("bkmght", "bytes=b", "kibi=k", "mebi=m", "gibi=g", "human=h", "total=t") {
		return 1
	}
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	kib := map[string]uint64{}
	for l := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(l, ":")
		if f := strings.Fields(v); len(f) > 0 {
			kib[k], _ = strconv.ParseUint(f[0], 10, 64)
		}
	}
	show := func(n uint64) string {
		switch {
		case c.has('h'):
			s := human(n << 10)
			if strings.ContainsAny(s, "KMGTPE") {
				s += "i"
			}
			return s
		case c.has('b'):
			return strconv.FormatUint(n<<10, 10)
		case c.has('m'):
			return strconv.FormatUint(n>>10, 10)
		case c.has('g'):
			return strconv.FormatUint(n>>20, 10)
		}
		return strconv.FormatUint(n, 10)
	}
	cache := kib["Buffers"] + kib["Cached"] + kib["SReclaimable"]
	used := kib["MemTotal"] - min(kib["MemTotal"], kib["MemAvailable"])
	fmt.Fprintf(c.out, "%-7s %11s %11s %11s %11s %11s %11s\n", "", "total", "used", "free", "shared", "buff/cache", "available")
	fmt.Fprintf(c.out, "%-7s %11s %11s %11s %11s %11s %11s\n", "Mem:", show(kib["MemTotal"]), show(used), show(kib["MemFree"]), show(kib["Shmem"]), show(cache), show(kib["MemAvailable"]))
	swapUsed := kib["SwapTotal"] - min(kib["SwapTotal"], kib["SwapFree"])
	fmt.Fprintf(c.out, "%-7s %11s %11s %11s\n", "Swap:", show(kib["SwapTotal"]), show(swapUsed), show(kib["SwapFree"]))
	if c.has('t') {
		fmt.Fprintf(c.out, "%-7s %11s %11s %11s\n", "Total:", show(kib["MemTotal"]+kib["SwapTotal"]), show(used+swapUsed), show(kib["MemFree"]+kib["SwapFree"]))
	}
	return 0
}
