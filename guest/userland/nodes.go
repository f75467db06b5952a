package userland

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func touch(c *ctx) int {
	if !c.getopt("acd:hmr:t:", "no-create=c", "date=d", "reference=r", "no-dereference=h") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing file operand")
	}
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	times := []unix.Timespec{now, now}
	switch {
	case c.has('r'):
		var st unix.Stat_t
		if err := unix.Stat(c.opt('r', ""), &st); err != nil {
			return c.fail(1, "failed to get attributes of '%s': %s", c.opt('r', ""), reason(err))
		}
		times = []unix.Timespec{st.Atim, st.Mtim}
	case c.has('d'), c.has('t'):
		s := c.opt('d', c.opt('t', ""))
		t, err := parseDate(s, c.has('t') && !c.has('d'))
		if err != nil {
			return c.fail(1, "invalid date format '%s'", s)
		}
		ts := unix.NsecToTimespec(t.UnixNano())
		times = []unix.Timespec{ts, ts}
	}
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	if c.has('a') && !c.has('m') {
		times[1] = omit
	}
	if c.has('m') && !c.has('a') {
		times[0] = omit
	}
	flags := 0
	if c.has('h') {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	for _, p := range c.args {
		err := unix.UtimesNanoAt(unix.AT_FDCWD, p, times, flags)
		if err == unix.ENOENT && c.has('c') {
			continue
		}
		if err == unix.ENOENT {
			var f *os.File
			if f, err = os.OpenFile(p, os.O_WRONLY|os.O_CREATE, 0o666); err == nil {
				f.Close()
				err = unix.UtimesNanoAt(unix.AT_FDCWD, p, times, flags)
			}
		}
		if err != nil {
			c.warn("cannot touch '%s': %s", p, reason(err))
		}
	}
	return c.code()
}

func mknod(c *ctx) int {
	if !c.getopt("m:", "mode=m") {
		return 1
	}
	if len(c.args) != 2 && len(c.args) != 4 {
		return c.usage("[-m mode] name {p | {b|c|u} major minor}")
	}
	kinds := map[string]uint32{"p": unix.S_IFIFO, "b": unix.S_IFBLK, "c": unix.S_IFCHR, "u": unix.S_IFCHR}
	kind, ok := kinds[c.args[1]]
	if !ok || (kind == unix.S_IFIFO) != (len(c.args) == 2) {
		return c.fail(1, "invalid device type '%s'", c.args[1])
	}
	dev := uint64(0)
	if len(c.args) == 4 {
		maj, err1 := strconv.ParseUint(c.args[2], 0, 12)
		min, err2 := strconv.ParseUint(c.args[3], 0, 20)
		if err1 != nil || err2 != nil {
			return c.fail(1, "invalid device number '%s,%s'", c.args[2], c.args[3])
		}
		dev = unix.Mkdev(uint32(maj), uint32(min))
	}
	return c.makeNode(c.args[0], kind, dev)
}

func (c *ctx) makeNode(name string, kind uint32, dev uint64) int {
	mode := uint32(0o666)
	if c.has('m') {
		m, err := parseMode(c.opt('m', ""), 0o666, false, 0)
		if err != nil {
			return c.fail(1, "%v", err)
		}
		mode = m
	}
	err := unix.Mknod(name, kind|mode, int(dev))
	if err == nil && c.has('m') {
		err = unix.Chmod(name, mode)
	}
	if err != nil {
		return c.fail(1, "%s: %s", name, reason(err))
	}
	return 0
}

func mkfifo(c *ctx) int {
	if !c.getopt("m:", "mode=m") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	for _, n := range c.args {
		if code := c.makeNode(n, unix.S_IFIFO, 0); code != 0 {
			c.failed = true
		}
	}
	return c.code()
}

func mktemp(c *ctx) int {
	if !c.getopt("dp:qtu", "directory=d", "tmpdir=p", "dry-run=u", "quiet=q") {
		return 1
	}
	tmpl := "tmp.XXXXXXXXXX"
	dir := c.opt('p', os.Getenv("TMPDIR"))
	if dir == "" {
		dir = "/tmp"
	}
	if len(c.args) > 0 {
		if tmpl = c.args[0]; !c.has('p') && !c.has('t') {
			dir = ""
		}
	}
	end := strings.LastIndexByte(tmpl, 'X') + 1
	start := end
	for start > 0 && tmpl[start-1] == 'X' {
		start--
	}
	if end-start < 3 {
		return c.fail(1, "too few X's in template '%s'", tmpl)
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	for range 100 {
		b := []byte(tmpl)
		for i := start; i < end; i++ {
			b[i] = letters[rand.IntN(len(letters))]
		}
		p := filepath.Join(dir, string(b))
		var err error
		switch {
		case c.has('u'):
			if _, err = os.Lstat(p); err == nil {
				continue
			}
			err = nil
		case c.has('d'):
			err = os.Mkdir(p, 0o700)
		default:
			var f *os.File
			if f, err = os.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
				f.Close()
			}
		}
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			if c.failed = true; !c.has('q') {
				c.warn("failed to create file via template '%s': %s", filepath.Join(dir, tmpl), reason(err))
			}
			return 1
		}
		fmt.Fprintln(c.out, p)
		return 0
	}
	return c.fail(1, "no free name for template '%s'", tmpl)
}

func truncate(c *ctx) int {
	if !c.getopt("cr:s:o", "no-create=c", "size=s", "reference=r") {
		return 1
	}
	spec := c.opt('s', "")
	if spec == "" && !c.has('r') || len(c.args) == 0 {
		return c.usage("-s [+-]size file...")
	}
	var n int64
	var sign byte
	var err error
	if c.has('r') {
		st, serr := os.Stat(c.opt('r', ""))
		if serr != nil {
			return c.fail(1, "cannot stat '%s': %s", c.opt('r', ""), reason(serr))
		}
		n = st.Size()
	} else if n, sign, err = count(spec); err != nil {
		return c.fail(1, "%v", err)
	}
	for _, p := range c.args {
		mode := os.O_WRONLY | os.O_CREATE
		if c.has('c') {
			mode = os.O_WRONLY
		}
		f, err := os.OpenFile(p, mode, 0o666)
		if err != nil {
			if !c.has('c') || !errors.Is(err, fs.ErrNotExist) {
				c.warn("cannot open '%s' for writing: %s", p, reason(err))
			}
			continue
		}
		to := n
		if st, serr := f.Stat(); serr == nil && sign == '+' {
			to = st.Size() + n
		} else if serr == nil && sign == '-' {
			to = max(0, st.Size()-n)
		}
		if err := f.Truncate(to); err != nil {
			c.warn("failed to truncate '%s' at %d bytes: %s", p, to, reason(err))
		}
		f.Close()
	}
	return c.code()
}

// parseDate parses what scripts write: RFC 3339, "YYYY-MM-DD[ hh:mm[:ss]]",
// "@seconds", "now"; or, stamp, "[[CC]YY]MMDDhhmm[.ss]".
func parseDate(s string, stamp bool) (time.Time, error) {
	if stamp {
		layout := "200601021504"
		main, sec, hasSec := strings.Cut(s, ".")
		switch len(main) {
		case 8:
			main = time.Now().Format("2006") + main
		case 10:
			layout = "0601021504"
		}
		if hasSec {
			main, layout = main+sec, layout+"05"
		}
		return time.ParseInLocation(layout, main, time.Local)
	}
	if s == "now" || s == "" {
		return time.Now(), nil
	}
	if at, ok := strings.CutPrefix(s, "@"); ok {
		f, err := strconv.ParseFloat(at, 64)
		return time.Unix(0, int64(f*1e9)), err
	}
	if n, unit, ok := strings.Cut(strings.TrimSuffix(s, " ago"), " "); ok {
		if k, err := strconv.Atoi(n); err == nil {
			if strings.HasSuffix(s, " ago") {
				k = -k
			}
			per := map[string]time.Duration{"sec": time.Second, "second": time.Second, "min": time.Minute, "minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour, "week": 7 * 24 * time.Hour}[strings.TrimSuffix(unit, "s")]
			if per != 0 {
				return time.Now().Add(time.Duration(k) * per), nil
			}
		}
	}
	for _, l := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05.999999999 -0700", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02", "20060102", "Mon Jan _2 15:04:05 MST 2006", "Mon Jan _2 15:04:05 2006", time.RFC1123Z, time.RFC1123} {
		if t, err := time.ParseInLocation(l, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("invalid date '%s'", s)
}
