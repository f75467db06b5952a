package userland

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// parseMode parses a mode as chmod(1) has it, octal or symbolic, applied to
// old.
func parseMode(s string, old uint32, dir bool, mask uint32) (uint32, error) {
	if s != "" && s[0] >= '0' && s[0] <= '7' {
		n, err := strconv.ParseUint(s, 8, 12)
		if err != nil {
			return 0, fmt.Errorf("invalid mode: '%s'", s)
		}
		if dir && len(s) < 5 {
			// As GNU chmod: setuid and setgid of a directory go only when the
			// mode has the digits to say so.
			n |= uint64(old) & 0o6000
		}
		return uint32(n), nil
	}
	mode := old & 0o7777
	for _, clause := range strings.Split(s, ",") {
		i := strings.IndexAny(clause, "+-=")
		if i < 0 {
			return 0, fmt.Errorf("invalid mode: '%s'", s)
		}
		var who uint32
		for _, w := range clause[:i] {
			switch w {
			case 'u':
				who |= 0o4700
			case 'g':
				who |= 0o2070
			case 'o':
				who |= 0o1007
			case 'a':
				who |= 0o7777
			default:
				return 0, fmt.Errorf("invalid mode: '%s'", s)
			}
		}
		limit := who
		if who == 0 {
			who, limit = 0o7777, 0o7777&^mask
		}
		for rest := clause[i:]; rest != ""; {
			op := rest[0]
			rest = rest[1:]
			end := strings.IndexAny(rest, "+-=")
			if end < 0 {
				end = len(rest)
			}
			var bits uint32
			for _, p := range rest[:end] {
				switch p {
				case 'r':
					bits |= 0o444
				case 'w':
					bits |= 0o222
				case 'x':
					bits |= 0o111
				case 'X':
					if dir || mode&0o111 != 0 {
						bits |= 0o111
					}
				case 's':
					bits |= 0o6000
				case 't':
					bits |= 0o1000
				case 'u':
					bits |= mode >> 6 & 7 * 0o111
				case 'g':
					bits |= mode >> 3 & 7 * 0o111
				case 'o':
					bits |= mode & 7 * 0o111
				default:
					return 0, fmt.Errorf("invalid mode: '%s'", s)
				}
			}
			rest = rest[end:]
			bits &= limit
			switch op {
			case '+':
				mode |= bits
			case '-':
				mode &^= bits
			case '=':
				keep := uint32(0)
				if dir {
					keep = 0o6000 // as GNU chmod: setuid and setgid of directories stay
				}
				mode = mode&^(who&^keep) | bits
			}
		}
	}
	return mode, nil
}

func chmod(c *ctx) int {
	// "-x" and the like are modes and not options.
	var mode string
	rest := c.args[:0:0]
	for _, a := range c.args {
		if mode == "" && len(a) > 1 && a[0] == '-' && strings.IndexByte("rwxXstugo", a[1]) >= 0 {
			mode = a
		} else {
			rest = append(rest, a)
		}
	}
	c.args = rest
	if !c.getopt("Rfvc", "recursive=R", "silent=f", "quiet=f", "verbose=v", "changes=c", "reference=r") {
		return 1
	}
	if mode == "" && len(c.args) > 0 {
		mode, c.args = c.args[0], c.args[1:]
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	mask := uint32(unix.Umask(0))
	unix.Umask(int(mask))
	if _, err := parseMode(mode, 0, false, mask); err != nil {
		return c.fail(1, "%v", err)
	}
	for _, p := range c.args {
		c.walk(p, c.has('R'), func(p string, st fs.FileInfo) error {
			if st.Mode()&fs.ModeSymlink != 0 {
				if c.has('R') {
					return nil
				}
				var err error
				if st, err = os.Stat(p); err != nil {
					return err
				}
			}
			m, err := parseMode(mode, st.Sys().(*statT).Mode, st.IsDir(), mask)
			if err != nil {
				return err
			}
			return unix.Chmod(p, m)
		}, "cannot access '%s': %s", "changing permissions of '%s': %s")
	}
	return c.code()
}

// walk calls f with p and, if recursive, all under it, the directory first.
func (c *ctx) walk(p string, recursive bool, f func(string, fs.FileInfo) error, noAccess, failed string) {
	st, err := os.Lstat(p)
	if err != nil {
		if c.failed = true; !c.has('f') {
			c.warn(noAccess, p, reason(err))
		}
		return
	}
	if err := f(p, st); err != nil {
		if c.failed = true; !c.has('f') {
			c.warn(failed, p, reason(err))
		}
	}
	if !recursive || !st.IsDir() {
		return
	}
	entries, err := os.ReadDir(p)
	if err != nil {
		c.warn("cannot read directory '%s': %s", p, reason(err))
	}
	for _, e := range entries {
		c.walk(filepath.Join(p, e.Name()), true, f, noAccess, failed)
	}
}

func chown(c *ctx) int { return chownAs(c, true) }

func chgrp(c *ctx) int { return chownAs(c, false) }

func chownAs(c *ctx, user bool) int {
	if !c.getopt("Rfhv", "recursive=R", "no-dereference=h", "silent=f") {
		return 1
	}
	if len(c.args) < 2 {
		return c.fail(1, "missing operand")
	}
	u, g := "", c.args[0]
	if user {
		var found bool
		if u, g, found = strings.Cut(c.args[0], ":"); !found {
			g = ""
		}
	}
	uid, err := lookupID("/etc/passwd", u)
	if err != nil {
		return c.fail(1, "invalid user: '%s'", c.args[0])
	}
	gid, err := lookupID("/etc/group", g)
	if err != nil {
		return c.fail(1, "invalid group: '%s'", c.args[0])
	}
	for _, p := range c.args[1:] {
		c.walk(p, c.has('R'), func(p string, st fs.FileInfo) error {
			if c.has('h') || c.has('R') {
				return os.Lchown(p, uid, gid)
			}
			return os.Chown(p, uid, gid)
		}, "cannot access '%s': %s", "changing ownership of '%s': %s")
	}
	return c.code()
}

// lookupID returns the number of a name in a passwd or group file, or the
// number that it is; -1 for none.
func lookupID(file, name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	b, _ := os.ReadFile(file)
	for l := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(l), ":")
		if len(f) > 2 && f[0] == name {
			return strconv.Atoi(f[2])
		}
	}
	n, err := strconv.ParseUint(name, 10, 31)
	return int(n), err
}

// nameOf returns the name of a number in a passwd or group file, or the number.
func nameOf(file string, id uint32) string {
	n := strconv.FormatUint(uint64(id), 10)
	b, _ := os.ReadFile(file)
	for l := range strings.Lines(string(b)) {
		if f := strings.Split(l, ":"); len(f) > 2 && f[2] == n {
			return f[0]
		}
	}
	return n
}
