package userland

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/agent"
)

func uname(c *ctx) int {
	if !c.getopt("asnrvmpio", "all=a", "kernel-name=s", "nodename=n", "kernel-release=r", "kernel-version=v", "machine=m",
		"processor=p", "hardware-platform=i", "operating-system=o") {
		return 1
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return c.fail(1, "%s", reason(err))
	}
	s := unix.ByteSliceToString
	var out []string
	for _, f := range []struct {
		opt byte
		v   string
	}{{'s', s(u.Sysname[:])}, {'n', s(u.Nodename[:])}, {'r', s(u.Release[:])}, {'v', s(u.Version[:])}, {'m', s(u.Machine[:])}, {'p', "unknown"}, {'i', "unknown"}, {'o', "GNU/Linux"}} {
		// -a leaves out what is unknown.
		if c.has(f.opt) || c.has('a') && f.v != "unknown" || len(c.opts) == 0 && f.opt == 's' {
			out = append(out, f.v)
		}
	}
	fmt.Fprintln(c.out, strings.Join(out, " "))
	return 0
}

func hostname(c *ctx) int {
	if !c.getopt("fsid", "fqdn=f", "short=s") {
		return 1
	}
	if len(c.args) > 0 {
		if err := unix.Sethostname([]byte(c.args[0])); err != nil {
			return c.fail(1, "sethostname: %s", reason(err))
		}
		return 0
	}
	h, err := os.Hostname()
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	if c.has('s') {
		h, _, _ = strings.Cut(h, ".")
	}
	fmt.Fprintln(c.out, h)
	return 0
}

func date(c *ctx) int {
	var format string
	rest := c.args[:0:0]
	iso := ""
	for _, a := range c.args {
		switch {
		case strings.HasPrefix(a, "+"):
			format = a[1:]
		case a == "-Iseconds" || a == "--iso-8601=seconds":
			iso = "%Y-%m-%dT%H:%M:%S%:z"
		case a == "-I" || a == "-Idate" || a == "--iso-8601":
			iso = "%Y-%m-%d"
		case a == "-Ins" || a == "--iso-8601=ns":
			iso = "%Y-%m-%dT%H:%M:%S,%N%:z"
		default:
			rest = append(rest, a)
		}
	}
	c.args = rest
	if !c.getopt("d:r:s:uR", "date=d", "reference=r", "set=s", "utc=u", "universal=u", "rfc-email=R") {
		return 1
	}
	t := time.Now()
	switch {
	case c.has('r'):
		st, err := os.Stat(c.opt('r', ""))
		if err != nil {
			return c.fail(1, "%s: %s", c.opt('r', ""), reason(err))
		}
		t = st.ModTime()
	case c.has('d'), c.has('s'):
		s := c.opt('s', c.opt('d', ""))
		var err error
		if c.has('u') {
			time.Local = time.UTC
		}
		if t, err = parseDate(s, false); err != nil {
			return c.fail(1, "invalid date '%s'", s)
		}
		if c.has('s') {
			ts := unix.NsecToTimespec(t.UnixNano())
			if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
				return c.fail(1, "cannot set date: %s", reason(err))
			}
		}
	case len(c.args) > 0:
		return c.fail(1, "invalid date '%s'", c.args[0])
	}
	if c.has('u') {
		t = t.UTC()
	} else {
		t = t.Local()
	}
	switch {
	case format != "":
	case iso != "":
		format = iso
	case c.has('R'):
		format = "%a, %d %b %Y %H:%M:%S %z"
	default:
		format = "%a %b %e %H:%M:%S %Z %Y"
	}
	fmt.Fprintln(c.out, strftime(format, t))
	return 0
}

// strftime formats as strftime(3) in the C locale, with GNU date's %N, %s and
// %:z.
func strftime(format string, t time.Time) string {
	layouts := map[byte]string{
		'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'm': "01",
		'M': "04", 'p': "PM", 'S': "05", 'y': "06", 'Y': "2006", 'z': "-0700", 'Z': "MST", 'D': "01/02/06", 'F': "2006-01-02",
		'T': "15:04:05", 'R': "15:04", 'r': "03:04:05 PM", 'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		pad := true
		if format[i] == '-' && i+1 < len(format) {
			pad = false
			i++
		}
		if format[i] == ':' && i+1 < len(format) && format[i+1] == 'z' {
			i++
			b.WriteString(t.Format("-07:00"))
			continue
		}
		v := ""
		digits := 9
		if format[i] >= '1' && format[i] <= '9' && i+1 < len(format) && format[i+1] == 'N' {
			digits = int(format[i] - '0')
			i++
		}
		switch f := format[i]; f {
		case 'N':
			v = fmt.Sprintf("%09d", t.Nanosecond())[:digits]
		case 's':
			v = strconv.FormatInt(t.Unix(), 10)
		case 'j':
			v = fmt.Sprintf("%03d", t.YearDay())
		case 'k':
			v = fmt.Sprintf("%2d", t.Hour())
		case 'l':
			v = fmt.Sprintf("%2d", (t.Hour()+11)%12+1)
		case 'u':
			v = strconv.Itoa((int(t.Weekday())+6)%7 + 1)
		case 'w':
			v = strconv.Itoa(int(t.Weekday()))
		case 'C':
			v = fmt.Sprintf("%02d", t.Year()/100)
		case 'G':
			y, _ := t.ISOWeek()
			v = strconv.Itoa(y)
		case 'V':
			_, w := t.ISOWeek()
			v = fmt.Sprintf("%02d", w)
		case 'P':
			v = strings.ToLower(t.Format("PM"))
		case 'n':
			v = "\n"
		case 't':
			v = "\t"
		case '%':
			v = "%"
		default:
			l, ok := layouts[f]
			if !ok {
				v = "%" + string(f)
				break
			}
			v = t.Format(l)
		}
		if !pad && v != "" && v != "0" {
			if v = strings.TrimLeft(v, "0 "); v == "" {
				v = "0"
			}
		}
		b.WriteString(v)
	}
	return b.String()
}

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

// dmesg reads the kernel's log from /dev/kmsg, which gives one record a read.
func dmesg(c *ctx) int {
	if !c.getopt("CcHn:rtTwxkl:", "clear=C", "read-clear=c", "console-level=n", "raw=r", "notime=t", "follow=w", "kernel=k") {
		return 1
	}
	switch {
	case c.has('n'):
		n, err := strconv.Atoi(c.opt('n', ""))
		if err != nil || n < 1 || n > 8 {
			return c.fail(1, "unknown level '%s'", c.opt('n', ""))
		}
		if err := os.WriteFile("/proc/sys/kernel/printk", []byte(strconv.Itoa(n)), 0); err != nil {
			return c.fail(1, "%s", reason(err))
		}
		return 0
	case c.has('C'):
		if _, err := unix.Klogctl(unix.SYSLOG_ACTION_CLEAR, nil); err != nil {
			return c.fail(1, "clear kernel buffer failed: %s", reason(err))
		}
		return 0
	}
	if !c.has('w') {
		return c.dmesgBuffer()
	}
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return c.fail(1, "cannot open /dev/kmsg: %s", reason(err))
	}
	defer unix.Close(fd)
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EPIPE || err == unix.EINTR {
			continue // records were overwritten before we read them
		}
		if err != nil {
			return c.fail(1, "read /dev/kmsg: %s", reason(err))
		}
		head, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		if f := strings.Split(head, ","); len(f) > 2 {
			us, _ := strconv.ParseUint(f[2], 10, 64)
			if !c.has('t') {
				fmt.Fprintf(c.out, "[%5d.%06d] ", us/1e6, us%1e6)
			}
		}
		fmt.Fprintln(c.out, text)
		if c.out.Flush() != nil {
			return 1
		}
	}
}

// dmesgBuffer prints the log as syslog(2) gives it, without the levels.
func (c *ctx) dmesgBuffer() int {
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return c.fail(1, "read kernel buffer failed: %s", reason(err))
	}
	buf := make([]byte, size+4096)
	action := unix.SYSLOG_ACTION_READ_ALL
	if c.has('c') {
		action = unix.SYSLOG_ACTION_READ_CLEAR
	}
	n, err := unix.Klogctl(action, buf)
	if err != nil {
		return c.fail(1, "read kernel buffer failed: %s", reason(err))
	}
	for l := range bytes.Lines(buf[:n]) {
		if !c.has('r') {
			if i := bytes.IndexByte(l, '>'); len(l) > 0 && l[0] == '<' && i > 0 {
				l = l[i+1:]
			}
			if i := bytes.IndexByte(l, ']'); c.has('t') && len(l) > 0 && l[0] == '[' && i > 0 {
				l = bytes.TrimPrefix(l[i+1:], []byte(" "))
			}
		}
		c.out.Write(l)
	}
	if n > 0 && buf[n-1] != '\n' {
		c.out.WriteByte('\n')
	}
	return 0
}

func syncCmd(c *ctx) int {
	if !c.getopt("df", "data=d", "file-system=f") {
		return 1
	}
	if len(c.args) == 0 {
		unix.Sync()
		return 0
	}
	for _, p := range c.args {
		f, err := os.Open(p)
		if err != nil {
			c.warn("error opening '%s': %s", p, reason(err))
			continue
		}
		switch {
		case c.has('f'):
			err = unix.Syncfs(int(f.Fd()))
		case c.has('d'):
			err = unix.Fdatasync(int(f.Fd()))
		default:
			err = f.Sync()
		}
		if err != nil {
			c.warn("error syncing '%s': %s", p, reason(err))
		}
		f.Close()
	}
	return c.code()
}

// shutdownCmd is poweroff, reboot, halt and shutdown.
func shutdownCmd(c *ctx) int {
	kind := c.name
	force := false
	if kind == "shutdown" {
		kind = "poweroff"
		for _, a := range c.args {
			switch a {
			case "-r", "--reboot":
				kind = "reboot"
			case "-H", "--halt":
				kind = "halt"
			case "-h", "-P", "--poweroff", "now", "+0", "0", "-t", "-y", "-f":
			case "-c":
				return c.fail(1, "no shutdown is scheduled: here it is always at once")
			default:
				if strings.HasPrefix(a, "-") || strings.HasPrefix(a, "+") || strings.Contains(a, ":") {
					return c.fail(1, "'%s': only \"now\" is supported", a)
				}
			}
		}
	} else {
		if !c.getopt("fnpwdihk", "force=f", "poweroff=p", "no-sync=n") {
			return 1
		}
		if force = c.has('f'); c.has('p') {
			kind = "poweroff"
		}
	}
	if err := agent.Shutdown(kind, force); err != nil {
		return c.fail(1, "%s", reason(err))
	}
	return 0
}

func mountCmd(c *ctx) int {
	if !c.getopt("t:o:rwvnal", "types=t", "options=o", "read-only=r", "rw=w", "bind=B", "rbind=C", "make-rprivate=D", "move=M") {
		return 1
	}
	if len(c.args) == 0 && !c.has('a') {
		b, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return c.fail(1, "%s", reason(err))
		}
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) >= 4 && (!c.has('t') || slices.Contains(strings.Split(c.opt('t', ""), ","), f[2])) {
				fmt.Fprintf(c.out, "%s on %s type %s (%s)\n", unescapeMount(f[0]), unescapeMount(f[1]), f[2], f[3])
			}
		}
		return 0
	}
	var opts []string
	for _, o := range c.opts {
		if o.name == 'o' {
			opts = append(opts, o.arg)
		}
	}
	for letter, o := range map[byte]string{'r': "ro", 'B': "bind", 'C': "rbind", 'M': "move", 'D': "rprivate"} {
		if c.has(letter) {
			opts = append(opts, o)
		}
	}
	flags, data := agent.ParseMountOptions(strings.Join(opts, ","))
	var src, dst string
	switch {
	case len(c.args) == 2:
		src, dst = c.args[0], c.args[1]
	case len(c.args) == 1 && (flags&unix.MS_REMOUNT != 0 || c.has('D') || flags&(unix.MS_PRIVATE|unix.MS_SHARED|unix.MS_SLAVE) != 0):
		src, dst = "none", c.args[0]
	default:
		return c.usage("[-t type] [-o options] source directory")
	}
	if data == "loop" || strings.Contains(","+data+",", ",loop,") {
		return c.fail(1, "loop devices are not supported: give the block device")
	}
	err := mountTyped(src, dst, c.opt('t', ""), flags, data)
	if err == nil && flags&unix.MS_BIND != 0 && flags&^(unix.MS_BIND|unix.MS_REC) != 0 && flags&unix.MS_REMOUNT == 0 {
		err = unix.Mount("none", dst, "", flags|unix.MS_REMOUNT, data)
	}
	if err != nil {
		return c.fail(32, "mounting %s on %s failed: %s", src, dst, reason(err))
	}
	return 0
}

// mountTyped mounts with the given type or, without one, with each that the
// kernel has for block devices.
func mountTyped(src, dst, typ string, flags uintptr, data string) error {
	if typ != "" && typ != "auto" || flags&(unix.MS_BIND|unix.MS_MOVE|unix.MS_REMOUNT|unix.MS_PRIVATE|unix.MS_SHARED|unix.MS_SLAVE|unix.MS_UNBINDABLE) != 0 {
		return unix.Mount(src, dst, typ, flags, data)
	}
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	err = unix.ENODEV
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "nodev") {
			continue
		}
		merr := unix.Mount(src, dst, strings.TrimSpace(l), flags, data)
		if merr == unix.EACCES && flags&unix.MS_RDONLY == 0 {
			merr = unix.Mount(src, dst, strings.TrimSpace(l), flags|unix.MS_RDONLY, data)
		}
		if merr == nil {
			return nil
		}
		if merr != unix.EINVAL || err == unix.ENODEV {
			err = merr
		}
	}
	return err
}

// unescapeMount undoes the octal escapes of /proc/mounts.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func umount(c *ctx) int {
	if !c.getopt("aflnrRt:dv", "lazy=l", "force=f", "all=a", "recursive=R", "read-only=r", "types=t") {
		return 1
	}
	flags := 0
	if c.has('l') {
		flags |= unix.MNT_DETACH
	}
	if c.has('f') {
		flags |= unix.MNT_FORCE
	}
	targets := c.args
	mounts := func() (ms [][]string) {
		b, _ := os.ReadFile("/proc/self/mounts")
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 2 {
				ms = append(ms, []string{unescapeMount(f[0]), unescapeMount(f[1]), f[2]})
			}
		}
		slices.Reverse(ms)
		return ms
	}
	if c.has('a') {
		targets = nil
		for _, m := range mounts() {
			if m[1] != "/" && m[1] != "/proc" && m[1] != "/sys" && m[1] != "/dev" && (!c.has('t') || m[2] == c.opt('t', "")) {
				targets = append(targets, m[1])
			}
		}
	} else if len(targets) == 0 {
		return c.usage("[-lf] directory...")
	}
	if c.has('R') {
		var all []string
		for _, t := range targets {
			for _, m := range mounts() {
				if m[1] == t || strings.HasPrefix(m[1], strings.TrimSuffix(t, "/")+"/") {
					all = append(all, m[1])
				}
			}
		}
		targets = all
	}
	for _, t := range targets {
		err := unix.Unmount(t, flags)
		if err == unix.EINVAL {
			// A device: where is it mounted?
			for _, m := range mounts() {
				if m[0] == t {
					err = unix.Unmount(m[1], flags)
					break
				}
			}
		}
		if err != nil {
			what := reason(err)
			switch err {
			case unix.EINVAL:
				what = "not mounted"
			case unix.EBUSY:
				what = "target is busy"
			}
			c.warn("%s: %s", t, what)
		}
	}
	if c.failed {
		return 32
	}
	return 0
}

func mountpoint(c *ctx) int {
	if !c.getopt("qdn", "quiet=q") || len(c.args) != 1 {
		return c.usage("[-q] directory")
	}
	p := c.args[0]
	say := func(s string) {
		if !c.has('q') {
			fmt.Fprintf(c.out, "%s %s\n", p, s)
		}
	}
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		if !c.has('q') {
			c.warn("%s: %s", p, reason(err))
		}
		return 1
	}
	abs, _ := filepath.Abs(real)
	b, _ := os.ReadFile("/proc/self/mounts")
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 1 && unescapeMount(f[1]) == abs {
			say("is a mountpoint")
			return 0
		}
	}
	say("is not a mountpoint")
	return 32
}

func df(c *ctx) int {
	if !c.getopt("ahikPTmt:", "all=a", "human-readable=h", "inodes=i", "portability=P", "print-type=T", "type=t") {
		return 1
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	type row struct{ dev, typ, dir string }
	var rows []row
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 2 {
			rows = append(rows, row{unescapeMount(f[0]), f[2], unescapeMount(f[1])})
		}
	}
	if len(c.args) > 0 {
		var chosen []row
		for _, a := range c.args {
			real, err := filepath.EvalSymlinks(a)
			if err != nil {
				c.warn("%s: %s", a, reason(err))
				continue
			}
			abs, _ := filepath.Abs(real)
			best := row{"-", "-", "-"}
			for _, r := range rows {
				if r.dev == abs || r.dir == "/" || abs == r.dir || strings.HasPrefix(abs, r.dir+"/") {
					if len(r.dir) >= len(best.dir) {
						best = r
					}
				}
			}
			chosen = append(chosen, best)
		}
		rows = chosen
	}
	head := []string{"Filesystem", "1K-blocks", "Used", "Available", "Use%", "Mounted on"}
	switch {
	case c.has('i'):
		head = []string{"Filesystem", "Inodes", "IUsed", "IFree", "IUse%", "Mounted on"}
	case c.has('h'):
		head[1], head[3] = "Size", "Avail"
	case c.has('P'):
		head[1], head[4] = "1024-blocks", "Capacity"
	case c.has('m'):
		head[1] = "1M-blocks"
	}
	if c.has('T') {
		head = slices.Insert(head, 1, "Type")
	}
	head[0] = fmt.Sprintf("%-14s", head[0]) // as wide as df has it
	table := [][]string{head}
	seen := map[string]bool{}
	for _, r := range rows {
		var st unix.Statfs_t
		if err := unix.Statfs(r.dir, &st); err != nil {
			if len(c.args) > 0 {
				c.warn("%s: %s", r.dir, reason(err))
			}
			continue
		}
		if len(c.args) == 0 && !c.has('a') && (st.Blocks == 0 || seen[r.dir]) || c.has('t') && r.typ != c.opt('t', "") {
			continue
		}
		seen[r.dir] = true
		bs := uint64(st.Frsize)
		total, free, avail := st.Blocks*bs, st.Bfree*bs, st.Bavail*bs
		if c.has('i') {
			total, free, avail = st.Files, st.Ffree, st.Ffree
		}
		used := total - free
		pct := "-"
		if used+avail > 0 {
			pct = fmt.Sprintf("%d%%", (used*100+used+avail-1)/(used+avail))
		}
		show := func(n uint64) string {
			switch {
			case c.has('i'):
				return strconv.FormatUint(n, 10)
			case c.has('h'):
				return human(n)
			case c.has('m'):
				return strconv.FormatUint((n+1<<20-1)>>20, 10)
			}
			return strconv.FormatUint((n+1023)/1024, 10)
		}
		t := []string{r.dev, show(total), show(used), show(avail), pct, r.dir}
		if c.has('T') {
			t = slices.Insert(t, 1, r.typ)
		}
		table = append(table, t)
	}
	left := 1
	if c.has('T') {
		left = 2
	}
	c.table(table, left)
	return c.code()
}

// table prints rows in columns, the first left ones and the last to the left,
// the others to the right.
func (c *ctx) table(rows [][]string, left int) {
	var width []int
	for _, r := range rows {
		for i, s := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len(s))
		}
	}
	for _, r := range rows {
		for i, s := range r {
			switch {
			case i == len(r)-1:
				c.out.WriteString(s)
			case i < left:
				fmt.Fprintf(c.out, "%-*s ", width[i], s)
			default:
				fmt.Fprintf(c.out, "%*s ", width[i], s)
			}
		}
		c.out.WriteByte('\n')
	}
}

func lsmod(c *ctx) int {
	b, err := os.ReadFile("/proc/modules")
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	fmt.Fprintf(c.out, "%-22s %8s  %s\n", "Module", "Size", "Used by")
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 3 {
			by := strings.TrimSuffix(f[3], ",")
			if by == "-" {
				by = ""
			}
			fmt.Fprintln(c.out, strings.TrimRight(fmt.Sprintf("%-22s %8s  %s %s", f[0], f[1], f[2], by), " "))
		}
	}
	return 0
}

func insmod(c *ctx) int {
	if !c.getopt("+f", "force=f") || len(c.args) == 0 {
		return c.usage("file [option=value...]")
	}
	if err := agent.LoadModule(c.args[0], strings.Join(c.args[1:], " ")); err != nil {
		return c.fail(1, "%v", err)
	}
	return 0
}

func rmmod(c *ctx) int {
	if !c.getopt("fsvw", "force=f") {
		return 1
	}
	if len(c.args) == 0 {
		return c.usage("module...")
	}
	flags := unix.O_NONBLOCK
	if c.has('f') {
		flags |= unix.O_TRUNC
	}
	for _, m := range c.args {
		if err := unix.DeleteModule(moduleName(m), flags); err != nil {
			c.warn("%s: %s", m, reason(err))
		}
	}
	return c.code()
}

// moduleName returns the name under which the kernel knows a module file.
func moduleName(path string) string {
	n := filepath.Base(path)
	for _, s := range []string{".xz", ".gz", ".zst"} {
		n = strings.TrimSuffix(n, s)
	}
	return strings.ReplaceAll(strings.TrimSuffix(n, ".ko"), "-", "_")
}

// modprobe loads a module and what it depends on, by modules.dep where the
// image has one, else from the files that the image has. A module that is
// built into the kernel or loaded already is fine.
func modprobe(c *ctx) int {
	if !c.getopt("+rqavfn", "remove=r", "quiet=q", "all=a", "verbose=v", "dry-run=n", "show-depends=n") {
		return 1
	}
	if len(c.args) == 0 {
		return c.usage("[-rq] module [option=value...]")
	}
	if c.has('r') {
		c.opts = nil
		return rmmod(c)
	}
	var u unix.Utsname
	unix.Uname(&u)
	dirs := []string{"/lib/modules/" + unix.ByteSliceToString(u.Release[:]), "/usr/lib/modules/" + unix.ByteSliceToString(u.Release[:])}
	names, opts := c.args[:1], strings.Join(c.args[1:], " ")
	if c.has('a') {
		names, opts = c.args, ""
	}
	for _, n := range names {
		if err := c.probe(dirs, moduleName(n), opts); err != nil && !c.has('q') {
			c.warn("%v", err)
		} else if err != nil {
			c.failed = true
		}
	}
	return c.code()
}

func (c *ctx) probe(dirs []string, name, opts string) error {
	if _, err := os.Stat("/sys/module/" + name); err == nil {
		if _, err := os.Stat("/sys/module/" + name + "/initstate"); err == nil {
			return nil // loaded
		}
	}
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "modules.dep"))
		for l := range strings.Lines(string(b)) {
			file, deps, _ := strings.Cut(strings.TrimSpace(l), ":")
			if err != nil || moduleName(file) != name {
				continue
			}
			list := strings.Fields(deps)
			slices.Reverse(list) // the deepest is last
			for _, m := range append(list, file) {
				o := ""
				if m == file {
					o = opts
				}
				if c.has('v') || c.has('n') {
					fmt.Fprintf(c.out, "insmod %s %s\n", filepath.Join(d, m), o)
				}
				if c.has('n') {
					continue
				}
				if err := agent.LoadModule(filepath.Join(d, m), o); err != nil {
					return err
				}
			}
			return nil
		}
		if b, err := os.ReadFile(filepath.Join(d, "modules.builtin")); err == nil {
			for l := range strings.Lines(string(b)) {
				if moduleName(strings.TrimSpace(l)) == name {
					return nil
				}
			}
		}
	}
	var file string
	for _, root := range append(dirs, "/lib/modules") {
		filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.Contains(p, ".ko") && moduleName(p) == name && file == "" {
				file = p
			}
			return nil
		})
	}
	if file == "" {
		return fmt.Errorf("FATAL: Module %s not found in the image", name)
	}
	if c.has('n') {
		fmt.Fprintf(c.out, "insmod %s %s\n", file, opts)
		return nil
	}
	return agent.LoadModule(file, opts)
}

func sysctl(c *ctx) int {
	if !c.getopt("nqwae", "values=n", "quiet=q", "write=w", "all=a", "ignore=e") {
		return 1
	}
	const root = "/proc/sys/"
	file := func(k string) string { return root + strings.ReplaceAll(k, ".", "/") }
	show := func(k string) {
		b, err := os.ReadFile(file(k))
		if err != nil {
			if !c.has('e') && !c.has('a') {
				c.warn("cannot stat %s: %s", file(k), reason(err))
			}
			return
		}
		for l := range strings.Lines(string(b)) {
			if l = strings.TrimSuffix(l, "\n"); c.has('n') {
				fmt.Fprintln(c.out, l)
			} else {
				fmt.Fprintf(c.out, "%s = %s\n", k, l)
			}
		}
	}
	if c.has('a') {
		filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				show(strings.ReplaceAll(strings.TrimPrefix(p, root), "/", "."))
			}
			return nil
		})
		return 0
	}
	for _, a := range c.args {
		k, v, set := strings.Cut(a, "=")
		k = strings.TrimSpace(k)
		if !set {
			show(k)
			continue
		}
		if err := os.WriteFile(file(k), []byte(strings.TrimSpace(v)), 0); err != nil {
			c.warn("setting key \"%s\": %s", k, reason(err))
		} else if !c.has('q') {
			fmt.Fprintf(c.out, "%s = %s\n", k, strings.TrimSpace(v))
		}
	}
	return c.code()
}

// lsvmbus lists the VMBus devices with their drivers.
func lsvmbus(c *ctx) int {
	if !c.getopt("v", "verbose=v") {
		return 1
	}
	ds, err := agent.VMBusDevices()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return c.fail(1, "no VMBus here: the hv_vmbus driver is not loaded, or this is no Hyper-V machine")
		}
		return c.fail(1, "%s", reason(err))
	}
	for _, d := range ds {
		driver := d.Driver
		if driver == "" {
			driver = "-"
		}
		fmt.Fprintf(c.out, "%s class %s driver %s", d.Instance, d.Class, driver)
		if n, ok := classNames[d.Class]; ok {
			fmt.Fprintf(c.out, " (%s)", n)
		}
		c.out.WriteByte('\n')
		if !c.has('v') {
			continue
		}
		dir := "/sys/bus/vmbus/devices/" + d.Instance + "/"
		for _, f := range []string{"id", "state", "monitor_id", "channel_vp_mapping"} {
			if b, err := os.ReadFile(dir + f); err == nil {
				fmt.Fprintf(c.out, "\t%s: %s\n", f, strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", ", "))
			}
		}
	}
	return 0
}

// classNames are the classes of VMBus devices, include/linux/hyperv.h.
var classNames = map[string]string{
	"f8615163-df3e-46c5-913f-f2d2f965ed0e": "network",
	"ba6163d9-04a1-4d29-b605-72e2ffb1dc7f": "SCSI",
	"32412632-86cb-44a2-9b5c-50d1417354f5": "IDE",
	"2f9bcc4a-0069-4af3-b76b-6fd0be528cda": "fibre channel",
	"cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a": "mouse",
	"f912ad6d-2b17-48ea-bd65-f927a61c7684": "keyboard",
	"da0a7802-e377-4aac-8e77-0558eb1073f8": "video",
	"57164f39-9115-4e78-ab55-382f3bd5422d": "heartbeat",
	"9527e630-d0ae-497b-adce-e80ab0175caf": "time synchronization",
	"0e0b6031-5213-4934-818b-38d90ced39db": "shutdown",
	"a9a0f4e7-5a45-4d96-b827-8a841e8c03e6": "key-value pairs",
	"35fa2e29-ea23-4236-96ae-3a6ebacba440": "backup",
	"34d14be3-dee4-41c8-9ae7-6b174977c192": "file copy",
	"1850db74-54a5-4c6b-8d1f-6ba6e9ed1b8a": "dynamic memory",
	"525074dc-8985-46e2-8057-a307dc18a502": "dynamic memory",
	"44c4f61d-4444-4400-9d52-802e27ede19f": "PCI",
	"3375baf4-9e15-4b30-b765-67acb10d607b": "activation",
}

func stty(c *ctx) int {
	t, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return c.fail(1, "'standard input': %s", reason(err))
	}
	flags := map[string]struct {
		word *uint32
		bit  uint32
	}{
		"echo": {&t.Lflag, unix.ECHO}, "icanon": {&t.Lflag, unix.ICANON}, "isig": {&t.Lflag, unix.ISIG}, "echoe": {&t.Lflag, unix.ECHOE},
		"echok": {&t.Lflag, unix.ECHOK}, "iexten": {&t.Lflag, unix.IEXTEN}, "opost": {&t.Oflag, unix.OPOST}, "onlcr": {&t.Oflag, unix.ONLCR},
		"icrnl": {&t.Iflag, unix.ICRNL}, "ixon": {&t.Iflag, unix.IXON}, "brkint": {&t.Iflag, unix.BRKINT}, "istrip": {&t.Iflag, unix.ISTRIP},
	}
	size, _ := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if len(c.args) == 0 || c.args[0] == "-a" {
		if size != nil && len(c.args) > 0 {
			fmt.Fprintf(c.out, "rows %d; columns %d;\n", size.Row, size.Col)
		}
		var words []string
		for n, f := range flags {
			if *f.word&f.bit == 0 {
				n = "-" + n
			}
			words = append(words, n)
		}
		slices.SortFunc(words, func(a, b string) int { return strings.Compare(strings.TrimPrefix(a, "-"), strings.TrimPrefix(b, "-")) })
		fmt.Fprintln(c.out, strings.Join(words, " "))
		return 0
	}
	for i := 0; i < len(c.args); i++ {
		a := c.args[i]
		switch name := strings.TrimPrefix(a, "-"); {
		case a == "size":
			if size == nil {
				return c.fail(1, "no size")
			}
			fmt.Fprintf(c.out, "%d %d\n", size.Row, size.Col)
		case a == "-g":
			fmt.Fprintf(c.out, "%x:%x:%x:%x\n", t.Iflag, t.Oflag, t.Cflag, t.Lflag)
		case strings.Count(a, ":") == 3:
			if _, err := fmt.Sscanf(a, "%x:%x:%x:%x", &t.Iflag, &t.Oflag, &t.Cflag, &t.Lflag); err != nil {
				return c.fail(1, "invalid argument '%s'", a)
			}
		case a == "raw" || a == "-cooked":
			t.Iflag, t.Oflag = 0, t.Oflag&^unix.OPOST
			t.Lflag &^= unix.ISIG | unix.ICANON
			t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		case a == "sane" || a == "-raw" || a == "cooked":
			t.Iflag |= unix.BRKINT | unix.ICRNL | unix.IXON
			t.Oflag |= unix.OPOST | unix.ONLCR
			t.Lflag |= unix.ISIG | unix.ICANON | unix.IEXTEN | unix.ECHO | unix.ECHOE | unix.ECHOK
		case (a == "rows" || a == "cols" || a == "columns") && i+1 < len(c.args) && size != nil:
			i++
			n, err := strconv.ParseUint(c.args[i], 10, 16)
			if err != nil {
				return c.fail(1, "invalid integer argument: '%s'", c.args[i])
			}
			if a == "rows" {
				size.Row = uint16(n)
			} else {
				size.Col = uint16(n)
			}
			if err := unix.IoctlSetWinsize(0, unix.TIOCSWINSZ, size); err != nil {
				return c.fail(1, "%s", reason(err))
			}
		default:
			f, ok := flags[name]
			if !ok {
				return c.fail(1, "invalid argument '%s'", a)
			}
			if name == a {
				*f.word |= f.bit
			} else {
				*f.word &^= f.bit
			}
		}
	}
	if err := unix.IoctlSetTermios(0, unix.TCSETSW, t); err != nil {
		return c.fail(1, "%s", reason(err))
	}
	return 0
}
