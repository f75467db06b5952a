package userland

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A process is what /proc tells of one.
type process struct {
	pid, ppid, pgrp, sid, tty int
	comm, state               string
	utime, stime, start       uint64 // clock ticks
	vsize                     uint64 // bytes
	rss                       uint64 // pages
	uid                       uint32
	args                      []string
}

func processes() (ps []process) {
	es, _ := os.ReadDir("/proc")
	for _, e := range es {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			ps = append(ps, p)
		}
	}
	slices.SortFunc(ps, func(a, b process) int { return a.pid - b.pid })
	return ps
}

// readProcess parses /proc/pid/stat, proc(5). It may be gone already.
func readProcess(pid int) (process, bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	b, err := os.ReadFile(dir + "stat")
	if err != nil {
		return process{}, false
	}
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	p := process{pid: pid, comm: string(b[open+1 : end])}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 22 {
		return process{}, false
	}
	num := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n }
	p.state, p.ppid, p.pgrp, p.sid, p.tty = f[0], int(num(1)), int(num(2)), int(num(3)), int(num(4))
	p.utime, p.stime, p.start, p.vsize, p.rss = num(11), num(12), num(19), num(20), num(21)
	if st, err := os.Stat(dir); err == nil {
		p.uid = st.Sys().(*statT).Uid
	}
	if b, err := os.ReadFile(dir + "cmdline"); err == nil && len(b) > 0 {
		p.args = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	}
	return p, true
}

func (p process) command() string {
	if len(p.args) > 0 {
		return strings.Join(p.args, " ")
	}
	return "[" + p.comm + "]"
}

func (p process) terminal() string {
	switch major := p.tty >> 8 & 0xfff; {
	case p.tty == 0:
		return "?"
	case major == 4 && p.tty&0xff >= 64:
		return fmt.Sprintf("ttyS%d", p.tty&0xff-64)
	case major == 4:
		return fmt.Sprintf("tty%d", p.tty&0xff)
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", (major-136)<<8|p.tty&0xff)
	}
	return "?"
}

// hz is USER_HZ, the unit of times in /proc, on all architectures of Linux
// that Go has.
const hz = 100

func clock(ticks uint64) string {
	s := ticks / hz
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

func ps(c *ctx) int {
	full, all := false, false
	var format []string
	var pids []int
	args := c.args
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		value := func(letter string) string {
			if v := a[strings.Index(a, letter)+1:]; v != "" {
				return v
			}
			if len(args) == 0 {
				return ""
			}
			v := args[0]
			args = args[1:]
			return v
		}
		for i := 0; i < len(a); i++ {
			switch a[i] {
			case '-', 'w', 'T', 'H':
			case 'e', 'A', 'a', 'x':
				all = true
			case 'f', 'l', 'u':
				full = true
			case 'o':
				format = append(format, strings.FieldsFunc(value("o"), func(r rune) bool { return r == ',' || r == ' ' })...)
				i = len(a)
			case 'p':
				for _, s := range strings.Split(value("p"), ",") {
					n, err := strconv.Atoi(s)
					if err != nil {
						return c.fail(1, "process ID list syntax error")
					}
					pids = append(pids, n)
				}
				i = len(a)
			default:
				return c.fail(1, "unsupported option '%s'", a)
			}
		}
	}
	if len(format) == 0 {
		format = []string{"pid", "tty", "time", "comm=CMD"}
		if full {
			format = []string{"user", "pid", "ppid", "stat", "tty", "time", "args"}
		}
	}
	self, _ := readProcess(os.Getpid())
	var rows [][]string
	var head []string
	titles := false
	for i, f := range format {
		name, title, own := strings.Cut(f, "=")
		if !own {
			title = strings.ToUpper(name)
			if name == "comm" || name == "args" {
				title = "COMMAND"
			}
		}
		titles = titles || title != ""
		format[i] = name
		head = append(head, title)
	}
	if titles {
		rows = append(rows, head)
	}
	for _, p := range processes() {
		if len(pids) > 0 && !slices.Contains(pids, p.pid) || len(pids) == 0 && !all && (p.tty != self.tty || p.uid != self.uid) {
			continue
		}
		var row []string
		for _, f := range format {
			v, ok := p.column(f)
			if !ok {
				return c.fail(1, "unknown column '%s'", f)
			}
			row = append(row, v)
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 || titles && len(rows) == 1 {
		c.failed = true
	}
	width := make([]int, len(format))
	for _, r := range rows {
		for i, s := range r {
			width[i] = max(width[i], len(s))
		}
	}
	text := map[string]bool{"user": true, "tty": true, "comm": true, "args": true, "stat": true, "state": true, "s": true, "cmd": true}
	for _, r := range rows {
		for i, s := range r {
			switch {
			case i == len(r)-1 && text[format[i]]:
				c.out.WriteString(s)
			case text[format[i]]:
				fmt.Fprintf(c.out, "%-*s", width[i], s)
			default:
				fmt.Fprintf(c.out, "%*s", width[i], s)
			}
			if i < len(r)-1 {
				c.out.WriteByte(' ')
			}
		}
		c.out.WriteByte('\n')
	}
	return c.code()
}

func (p process) column(name string) (string, bool) {
	switch name {
	case "pid":
		return strconv.Itoa(p.pid), true
	case "ppid":
		return strconv.Itoa(p.ppid), true
	case "pgid", "pgrp":
		return strconv.Itoa(p.pgrp), true
	case "sid", "sess":
		return strconv.Itoa(p.sid), true
	case "tty", "tt":
		return p.terminal(), true
	case "stat", "state", "s":
		return p.state, true
	case "time":
		return clock(p.utime + p.stime), true
	case "comm", "ucmd":
		return p.comm, true
	case "args", "cmd", "command":
		return p.command(), true
	case "user", "uname":
		return nameOf("/etc/passwd", p.uid), true
	case "uid":
		return strconv.FormatUint(uint64(p.uid), 10), true
	case "rss":
		return strconv.FormatUint(p.rss*uint64(os.Getpagesize())/1024, 10), true
	case "vsz":
		return strconv.FormatUint(p.vsize/1024, 10), true
	}
	return "", false
}

// named returns the processes with the name of their program.
func named(names ...string) (pids []int) {
	for _, p := range processes() {
		prog := p.comm
		if len(p.args) > 0 && p.args[0] != "" {
			prog = filepath.Base(p.args[0])
		}
		for _, n := range names {
			if n == p.comm || n == prog || len(p.args) > 0 && n == p.args[0] {
				pids = append(pids, p.pid)
				break
			}
		}
	}
	return pids
}

func pidof(c *ctx) int {
	if !c.getopt("so:x", "single-shot=s") {
		return 1
	}
	pids := named(c.args...)
	slices.Reverse(pids)
	first := true
	for _, p := range pids {
		if p == os.Getpid() {
			continue
		}
		if !first {
			c.out.WriteByte(' ')
		}
		first = false
		fmt.Fprint(c.out, p)
		if c.has('s') {
			break
		}
	}
	if first {
		return 1
	}
	c.out.WriteByte('\n')
	return 0
}

func killall(c *ctx) int {
	if len(c.args) > 0 && c.args[0] == "-q" {
		c.args = c.args[1:]
	}
	sig, err := c.signalOption()
	if err != nil {
		return c.fail(1, "%v", err)
	}
	if len(c.args) == 0 {
		return c.usage("[-signal] name...")
	}
	for _, n := range c.args {
		any := false
		for _, p := range named(n) {
			if p == os.Getpid() {
				continue
			}
			any = true
			if err := syscall.Kill(p, sig); err != nil {
				c.warn("%s(%d): %s", n, p, reason(err))
			}
		}
		if !any {
			c.warn("%s: no process found", n)
		}
	}
	return c.code()
}
