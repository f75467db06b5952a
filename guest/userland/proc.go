package userland

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// builtin runs a command that the shell's interpreter has built in.
func builtin(c *ctx) int {
	s, err := newShell(c.name, nil, nil)
	if err != nil {
		return c.fail(2, "%v", err)
	}
	return s.runArgs(append([]string{c.name}, c.args...))
}

func echo(c *ctx) int    { return builtin(c) }
func test(c *ctx) int    { return builtin(c) }
func bracket(c *ctx) int { return builtin(c) }

// clearCmd clears the terminal; reset also leaves a character set that binary
// output switched on.
func clearCmd(c *ctx) int {
	if c.name == "reset" {
		c.out.WriteString("\x1bc")
	}
	c.out.WriteString("\x1b[H\x1b[2J\x1b[3J")
	return 0
}

// runCommand runs a program on our streams and returns its exit code as a
// shell would.
func (c *ctx) runCommand(args []string, stdin *os.File) int {
	c.out.Flush()
	path, err := exec.LookPath(args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		c.warn("'%s': %s", args[0], "No such file or directory")
		return 127
	}
	cmd := exec.Cmd{Path: path, Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if stdin != nil {
		cmd.Stdin = stdin
	}
	return c.waitCommand(&cmd)
}

func (c *ctx) waitCommand(cmd *exec.Cmd) int {
	err := cmd.Run()
	var ee *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ee):
		ws := ee.Sys().(syscall.WaitStatus)
		if ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return ws.ExitStatus()
	}
	c.warn("'%s': %s", cmd.Args[0], reason(err))
	return 126
}

// execCommand becomes another program. It returns only when that fails.
func (c *ctx) execCommand(args, env []string) int {
	c.out.Flush()
	path := args[0]
	if !strings.Contains(path, "/") {
		p := os.Getenv("PATH")
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, "PATH="); ok {
				p = v
			}
		}
		path = ""
		for _, d := range filepath.SplitList(p) {
			if d == "" {
				d = "."
			}
			if f := filepath.Join(d, args[0]); unix.Access(f, unix.X_OK) == nil {
				if st, err := os.Stat(f); err == nil && !st.IsDir() {
					path = f
					break
				}
			}
		}
	}
	err := error(unix.ENOENT)
	if path != "" {
		err = syscall.Exec(path, args, env)
	}
	code := 126
	if errors.Is(err, unix.ENOENT) {
		code = 127
	}
	return c.fail(code, "'%s': %s", args[0], reason(err))
}

func envCmd(c *ctx) int {
	if !c.getopt("+i0u:C:", "ignore-environment=i", "unset=u", "null=0", "chdir=C") {
		return 125
	}
	env := os.Environ()
	if len(c.args) > 0 && c.args[0] == "-" {
		c.args = c.args[1:]
		env = nil
	}
	if c.has('i') {
		env = nil
	}
	set := func(k, v string, keep bool) {
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
		switch {
		case i >= 0 && keep:
			env[i] = k + "=" + v
		case i >= 0:
			env = slices.Delete(env, i, i+1)
		case keep:
			env = append(env, k+"="+v)
		}
	}
	for _, o := range c.opts {
		if o.name == 'u' {
			set(o.arg, "", false)
		}
	}
	for len(c.args) > 0 {
		k, v, ok := strings.Cut(c.args[0], "=")
		if !ok {
			break
		}
		set(k, v, true)
		c.args = c.args[1:]
	}
	if c.has('C') {
		if err := os.Chdir(c.opt('C', "")); err != nil {
			return c.fail(125, "cannot change directory to '%s': %s", c.opt('C', ""), reason(err))
		}
	}
	if len(c.args) > 0 {
		return c.execCommand(c.args, env)
	}
	end := "\n"
	if c.has('0') {
		end = "\x00"
	}
	for _, e := range env {
		c.out.WriteString(e + end)
	}
	return 0
}

func printenv(c *ctx) int {
	if !c.getopt("0", "null=0") {
		return 2
	}
	if len(c.args) == 0 {
		c.args = nil
		return envCmd(c)
	}
	for _, n := range c.args {
		v, ok := os.LookupEnv(n)
		if !ok {
			c.failed = true
			continue
		}
		fmt.Fprintln(c.out, v)
	}
	return c.code()
}

func pwd(c *ctx) int {
	if !c.getopt("LP", "logical=L", "physical=P") {
		return 1
	}
	d, err := unixGetwd()
	if p := os.Getenv("PWD"); c.has('L') && filepath.IsAbs(p) {
		a, err1 := os.Stat(p)
		b, err2 := os.Stat(".")
		if err1 == nil && err2 == nil && os.SameFile(a, b) {
			d, err = p, nil
		}
	}
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	fmt.Fprintln(c.out, d)
	return 0
}

// unixGetwd returns the physical directory; os.Getwd believes $PWD.
func unixGetwd() (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Getcwd(buf[:])
	if err != nil {
		return "", err
	}
	return string(bytes.TrimRight(buf[:n], "\x00")), nil
}

func sleep(c *ctx) int {
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	var total time.Duration
	for _, a := range c.args {
		d, err := duration(a)
		if err != nil {
			return c.fail(1, "invalid time interval '%s'", a)
		}
		if c.name == "usleep" {
			d /= 1000000
		}
		total += d
	}
	time.Sleep(total)
	return 0
}

// duration parses a number of seconds, or of what its suffix says.
func duration(s string) (time.Duration, error) {
	unit := time.Second
	if s != "" {
		if u, ok := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}[s[len(s)-1]]; ok {
			unit, s = u, s[:len(s)-1]
		}
	}
	if s == "infinity" || s == "inf" {
		return 1<<63 - 1, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || f != f {
		return 0, fmt.Errorf("invalid time interval '%s'", s)
	}
	if d := f * float64(unit); d < 1<<63-1 {
		return time.Duration(d), nil
	}
	return 1<<63 - 1, nil
}

func nproc(c *ctx) int {
	if !c.getopt("ai:", "all=a", "ignore=i") {
		return 1
	}
	n := runtime.NumCPU()
	if c.has('a') {
		if es, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*"); err == nil && len(es) > 0 {
			n = len(es)
		}
	}
	k, _ := strconv.Atoi(c.opt('i', "0"))
	fmt.Fprintln(c.out, max(1, n-k))
	return 0
}

func id(c *ctx) int {
	if !c.getopt("ugGnr", "user=u", "group=g", "groups=G", "name=n", "real=r") {
		return 1
	}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if c.has('r') {
		uid, gid = uint32(os.Getuid()), uint32(os.Getgid())
	}
	gids, _ := os.Getgroups()
	if len(c.args) > 0 {
		u, err := lookupID("/etc/passwd", c.args[0])
		if err != nil {
			return c.fail(1, "'%s': no such user", c.args[0])
		}
		uid, gid, gids = uint32(u), 0, nil
		b, _ := os.ReadFile("/etc/passwd")
		for l := range strings.Lines(string(b)) {
			if f := strings.Split(l, ":"); len(f) > 3 && f[2] == strconv.Itoa(u) {
				g, _ := strconv.Atoi(f[3])
				gid = uint32(g)
				break
			}
		}
	}
	all := []uint32{gid}
	for _, g := range gids {
		if !slices.Contains(all, uint32(g)) {
			all = append(all, uint32(g))
		}
	}
	show := func(file string, id uint32) string {
		if c.has('n') {
			return nameOf(file, id)
		}
		return strconv.FormatUint(uint64(id), 10)
	}
	switch {
	case c.has('u'):
		fmt.Fprintln(c.out, show("/etc/passwd", uid))
	case c.has('g'):
		fmt.Fprintln(c.out, show("/etc/group", gid))
	case c.has('G'):
		for i, g := range all {
			if i > 0 {
				c.out.WriteByte(' ')
			}
			c.out.WriteString(show("/etc/group", g))
		}
		c.out.WriteByte('\n')
	default:
		named := func(file string, id uint32) string {
			s := strconv.FormatUint(uint64(id), 10)
			if n := nameOf(file, id); n != s {
				s += "(" + n + ")"
			}
			return s
		}
		fmt.Fprintf(c.out, "uid=%s gid=%s groups=", named("/etc/passwd", uid), named("/etc/group", gid))
		for i, g := range all {
			if i > 0 {
				c.out.WriteByte(',')
			}
			c.out.WriteString(named("/etc/group", g))
		}
		c.out.WriteByte('\n')
	}
	return 0
}

func whoami(c *ctx) int {
	fmt.Fprintln(c.out, nameOf("/etc/passwd", uint32(os.Geteuid())))
	return 0
}

func groups(c *ctx) int {
	c.opts = append(c.opts, option{name: 'G'}, option{name: 'n'})
	c.args = append([]string{"-Gn"}, c.args...)
	return id(c)
}

// signalNumber parses a signal by number or name, with or without SIG.
func signalNumber(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	up := strings.ToUpper(s)
	if up == "EXIT" {
		return 0, nil
	}
	if n := unix.SignalNum("SIG" + strings.TrimPrefix(up, "SIG")); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("%s: invalid signal specification", s)
}

// signalOption takes "-9", "-TERM", "-s TERM" off the arguments of kill.
func (c *ctx) signalOption() (sig syscall.Signal, err error) {
	sig = unix.SIGTERM
	for len(c.args) > 0 && len(c.args[0]) > 1 && c.args[0][0] == '-' {
		a := c.args[0]
		c.args = c.args[1:]
		if a == "--" {
			break
		}
		name := a[1:]
		if a == "-s" || a == "--signal" || a == "-n" {
			if len(c.args) == 0 {
				return 0, fmt.Errorf("option requires an argument -- 's'")
			}
			name, c.args = c.args[0], c.args[1:]
		} else if n, ok := strings.CutPrefix(a, "--signal="); ok {
			name = n
		} else if n, ok := strings.CutPrefix(a, "-s"); ok && n != "" {
			if v, verr := signalNumber(n); verr == nil {
				return v, nil
			}
		}
		if sig, err = signalNumber(name); err != nil {
			return 0, err
		}
	}
	return sig, nil
}

func kill(c *ctx) int {
	if len(c.args) > 0 && (c.args[0] == "-l" || c.args[0] == "-L") {
		if len(c.args) > 1 {
			for _, a := range c.args[1:] {
				n, err := signalNumber(a)
				if err != nil && len(a) > 2 {
					return c.fail(1, "%v", err)
				}
				if k, aerr := strconv.Atoi(a); aerr == nil {
					if k > 128 {
						k -= 128
					}
					fmt.Fprintln(c.out, strings.TrimPrefix(unix.SignalName(syscall.Signal(k)), "SIG"))
				} else {
					fmt.Fprintln(c.out, int(n))
				}
			}
			return 0
		}
		var names []string
		for n := 1; n < 32; n++ {
			names = append(names, strings.TrimPrefix(unix.SignalName(syscall.Signal(n)), "SIG"))
		}
		fmt.Fprintln(c.out, strings.Join(names, " "))
		return 0
	}
	sig, err := c.signalOption()
	if err != nil {
		return c.fail(1, "%v", err)
	}
	if len(c.args) == 0 {
		return c.usage("[-s signal | -signal] pid...")
	}
	for _, a := range c.args {
		pid, err := strconv.Atoi(a)
		if err != nil {
			c.warn("failed to parse argument: '%s'", a)
			continue
		}
		if err := syscall.Kill(pid, sig); err != nil {
			c.warn("(%d) - %s", pid, reason(err))
		}
	}
	return c.code()
}

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

func timeout(c *ctx) int {
	if !c.getopt("+s:k:fv", "signal=s", "kill-after=k", "foreground=f", "preserve-status=p", "verbose=v") {
		return 125
	}
	if len(c.args) < 2 {
		return c.fail(125, "missing operand")
	}
	limit, err := duration(c.args[0])
	if err != nil {
		return c.fail(125, "%v", err)
	}
	sig := syscall.Signal(unix.SIGTERM)
	if c.has('s') {
		if sig, err = signalNumber(c.opt('s', "")); err != nil {
			return c.fail(125, "%v", err)
		}
	}
	path, err := exec.LookPath(c.args[1])
	if err != nil {
		return c.fail(127, "failed to run command '%s': No such file or directory", c.args[1])
	}
	cmd := exec.Cmd{Path: path, Args: c.args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: !c.has('f')}}
	if err := cmd.Start(); err != nil {
		return c.fail(126, "failed to run command '%s': %s", c.args[1], reason(err))
	}
	send := func(s syscall.Signal) {
		cmd.Process.Signal(s)
		if !c.has('f') {
			syscall.Kill(-cmd.Process.Pid, s)
			syscall.Kill(-cmd.Process.Pid, unix.SIGCONT)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	var t <-chan time.Time
	if limit > 0 {
		t = time.After(limit)
	}
	timedOut := false
	for {
		select {
		case err := <-ended:
			var ee *exec.ExitError
			code := 0
			if errors.As(err, &ee) {
				ws := ee.Sys().(syscall.WaitStatus)
				if code = ws.ExitStatus(); ws.Signaled() {
					code = 128 + int(ws.Signal())
				}
			}
			if timedOut && !c.has('p') && code != 128+int(unix.SIGKILL) {
				return 124
			}
			return code
		case <-t:
			if timedOut {
				send(unix.SIGKILL)
				t = nil
				continue
			}
			timedOut = true
			send(sig)
			t = nil
			if c.has('k') {
				d, err := duration(c.opt('k', ""))
				if err == nil {
					t = time.After(d)
				}
			}
		case s := <-sigs:
			send(s.(syscall.Signal))
		}
	}
}

func timeCmd(c *ctx) int {
	if !c.getopt("+p", "portability=p") {
		return 125
	}
	if len(c.args) == 0 {
		return 0
	}
	start := time.Now()
	code := c.runCommand(c.args, nil)
	real := time.Since(start)
	var ru unix.Rusage
	unix.Getrusage(unix.RUSAGE_CHILDREN, &ru)
	fmt.Fprintf(c.err, "real %.2f\nuser %.2f\nsys %.2f\n", real.Seconds(),
		time.Duration(ru.Utime.Nano()).Seconds(), time.Duration(ru.Stime.Nano()).Seconds())
	return code
}

func nohup(c *ctx) int {
	if len(c.args) == 0 {
		return c.fail(125, "missing operand")
	}
	signal.Ignore(unix.SIGHUP)
	return c.execCommand(c.args, os.Environ())
}

func setsid(c *ctx) int {
	if !c.getopt("+cfw", "ctty=c", "fork=f", "wait=w") {
		return 1
	}
	if len(c.args) == 0 {
		return c.usage("[-c] command...")
	}
	path, err := exec.LookPath(c.args[0])
	if err != nil {
		return c.fail(127, "failed to execute %s: No such file or directory", c.args[0])
	}
	cmd := exec.Cmd{Path: path, Args: c.args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: c.has('c')}}
	if c.has('f') && !c.has('w') {
		if err := cmd.Start(); err != nil {
			return c.fail(126, "failed to execute %s: %s", c.args[0], reason(err))
		}
		return 0
	}
	return c.waitCommand(&cmd)
}

func chrootCmd(c *ctx) int {
	if !c.getopt("+") {
		return 125
	}
	if len(c.args) == 0 {
		return c.usage("newroot [command...]")
	}
	if err := unix.Chroot(c.args[0]); err != nil {
		return c.fail(125, "cannot change root directory to '%s': %s", c.args[0], reason(err))
	}
	if err := os.Chdir("/"); err != nil {
		return c.fail(125, "cannot chdir to root directory: %s", reason(err))
	}
	args := c.args[1:]
	if len(args) == 0 {
		args = []string{"/bin/sh", "-i"}
	}
	return c.execCommand(args, os.Environ())
}

func which(c *ctx) int {
	if !c.getopt("as", "all=a") {
		return 2
	}
	for _, n := range c.args {
		dirs := filepath.SplitList(os.Getenv("PATH"))
		if strings.Contains(n, "/") {
			dirs = []string{""}
		}
		ok := false
		for _, d := range dirs {
			p := n
			if d != "" {
				p = strings.TrimSuffix(d, "/") + "/" + n
			}
			if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && unix.Access(p, unix.X_OK) == nil {
				fmt.Fprintln(c.out, p)
				if ok = true; !c.has('a') {
					break
				}
			}
		}
		if !ok {
			c.failed = true
		}
	}
	return c.code()
}

func xargs(c *ctx) int {
	if !c.getopt("+0rtxpI:n:L:P:s:d:a:i", "null=0", "no-run-if-empty=r", "verbose=t", "max-args=n", "max-lines=L", "max-procs=P", "replace=I", "delimiter=d", "arg-file=a") {
		return 1
	}
	in := c.in
	if c.has('a') {
		f, err := os.Open(c.opt('a', ""))
		if err != nil {
			return c.fail(1, "Cannot open input file '%s': %s", c.opt('a', ""), reason(err))
		}
		defer f.Close()
		in = f
	}
	all, err := io.ReadAll(in)
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	replace := c.opt('I', "")
	if c.has('i') {
		replace = "{}"
	}
	var items []string
	perLine := replace != "" || c.has('L')
	switch {
	case c.has('0') || c.has('d'):
		delim := "\x00"
		if !c.has('0') {
			if delim = c.opt('d', ""); delim == `\n` {
				delim = "\n"
			} else if delim == `\0` {
				delim = "\x00"
			}
		}
		items = strings.Split(strings.TrimSuffix(string(all), delim), delim)
		if len(all) == 0 {
			items = nil
		}
	case perLine:
		for l := range strings.Lines(string(all)) {
			if l = strings.Trim(strings.TrimSuffix(l, "\n"), " \t"); l != "" {
				items = append(items, l)
			}
		}
	default:
		if items, err = splitQuoted(string(all)); err != nil {
			return c.fail(1, "%v", err)
		}
	}
	cmd := c.args
	if len(cmd) == 0 {
		cmd = []string{"echo"}
	}
	per := len(items)
	if c.has('n') {
		if per, err = strconv.Atoi(c.opt('n', "")); err != nil || per < 1 {
			return c.fail(1, "invalid number \"%s\" for -n option", c.opt('n', ""))
		}
	}
	if perLine {
		per = 1
		if c.has('L') {
			per, _ = strconv.Atoi(c.opt('L', "1"))
		}
	}
	// As many arguments as execve surely takes: 128 KiB, as xargs does it.
	const maxBytes = 128 << 10
	null, err := os.Open(os.DevNull)
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	defer null.Close()
	code := 0
	run := func(args []string) bool {
		if c.has('t') {
			fmt.Fprintln(c.err, strings.Join(args, " "))
		}
		switch k := c.runCommand(args, null); {
		case k == 255:
			code = 124
			c.warn("%s: exited with status 255; aborting", args[0])
			return false
		case k > 128:
			code = 125
			return false
		case k == 126 || k == 127:
			code = k
			return false
		case k != 0:
			code = 123
		}
		return true
	}
	if len(items) == 0 {
		if !c.has('r') && replace == "" {
			run(cmd)
		}
		return code
	}
	for len(items) > 0 {
		n, size := 0, 0
		for n < len(items) && n < max(per, 1) && (n == 0 || size+len(items[n])+1 < maxBytes) {
			size += len(items[n]) + 1
			n++
		}
		var args []string
		if replace != "" {
			for _, a := range cmd {
				args = append(args, strings.ReplaceAll(a, replace, items[0]))
			}
		} else {
			args = append(append(args, cmd...), items[:n]...)
			if c.has('L') {
				args = cmd[:len(cmd):len(cmd)]
				for _, l := range items[:n] {
					args = append(args, strings.Fields(l)...)
				}
			}
		}
		items = items[n:]
		if !run(args) {
			break
		}
	}
	return code
}

// splitQuoted splits at blanks and newlines, with the quotes of xargs.
func splitQuoted(s string) (words []string, err error) {
	var w []byte
	in := false
	for i := 0; i < len(s); i++ {
		switch ch := s[i]; {
		case isSpace(ch):
			if in {
				words, w, in = append(words, string(w)), nil, false
			}
		case ch == '\\' && i+1 < len(s):
			i++
			w, in = append(w, s[i]), true
		case ch == '\'' || ch == '"':
			end := strings.IndexByte(s[i+1:], ch)
			if end < 0 || strings.Contains(s[i+1:i+1+end], "\n") {
				return nil, fmt.Errorf("unmatched quote; by default quotes are special to xargs unless you use the -0 option")
			}
			w, in = append(w, s[i+1:i+1+end]...), true
			i += end + 1
		default:
			w, in = append(w, ch), true
		}
	}
	if in {
		words = append(words, string(w))
	}
	return words, nil
}

func tty(c *ctx) int {
	if !c.getopt("s", "silent=s", "quiet=s") {
		return 2
	}
	p, err := os.Readlink("/proc/self/fd/0")
	if _, terr := unix.IoctlGetTermios(0, unix.TCGETS); terr != nil || err != nil {
		if !c.has('s') {
			c.out.WriteString("not a tty\n")
		}
		return 1
	}
	if !c.has('s') {
		fmt.Fprintln(c.out, p)
	}
	return 0
}
