package userland

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// expandDirs replaces directories by the files under them.
func expandDirs(c *ctx, names []string) (files []string) {
	for _, n := range names {
		st, err := os.Stat(n)
		if err != nil || !st.IsDir() {
			files = append(files, n) // whoever opens it tells
			continue
		}
		files = append(files, c.filesIn(n)...)
	}
	return files
}

func (c *ctx) filesIn(dir string) (files []string) {
	es, err := readDir(dir)
	if err != nil {
		c.warn("%s: %s", dir, reason(err))
	}
	for _, e := range es {
		p := strings.TrimSuffix(dir, "/") + "/" + e.Name()
		switch {
		case e.IsDir():
			files = append(files, c.filesIn(p)...)
		case e.Type().IsRegular():
			files = append(files, p)
		}
	}
	return files
}

// readDir returns the entries of a directory in the file system's order, in
// which find, grep -r and du go.
func readDir(dir string) ([]fs.DirEntry, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

func mkdir(c *ctx) int {
	if !c.getopt("m:pv", "mode=m", "parents=p", "verbose=v") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	for _, d := range c.args {
		var err error
		if c.has('p') {
			err = os.MkdirAll(d, 0o777)
		} else {
			err = os.Mkdir(d, 0o777)
		}
		if err == nil && c.has('m') {
			var m uint32
			if m, err = parseMode(c.opt('m', ""), 0o777, true, 0); err == nil {
				err = unix.Chmod(d, m)
			}
		}
		if err != nil {
			c.warn("cannot create directory '%s': %s", d, reason(err))
		} else if c.has('v') {
			fmt.Fprintf(c.out, "%s: created directory '%s'\n", c.name, d)
		}
	}
	return c.code()
}

func rmdir(c *ctx) int {
	if !c.getopt("p", "parents=p") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	for _, d := range c.args {
		for {
			if err := unix.Rmdir(d); err != nil {
				c.warn("failed to remove '%s': %s", d, reason(err))
				break
			}
			if d = filepath.Dir(d); !c.has('p') || d == "." || d == "/" {
				break
			}
		}
	}
	return c.code()
}

func rm(c *ctx) int {
	if !c.getopt("firRdv", "force=f", "recursive=r", "dir=d", "verbose=v", "one-file-system=d", "no-preserve-root=v") {
		return 1
	}
	if len(c.args) == 0 && !c.has('f') {
		return c.fail(1, "missing operand")
	}
	recursive := c.has('r') || c.has('R')
	for _, p := range c.args {
		base := filepath.Base(p)
		if base == "." || base == ".." || filepath.Clean(p) == "/" {
			c.warn("refusing to remove '%s'", p)
			continue
		}
		st, err := os.Lstat(p)
		switch {
		case err != nil:
		case st.IsDir() && !recursive && !c.has('d'):
			err = unix.EISDIR
		case recursive:
			err = os.RemoveAll(p)
		default:
			err = os.Remove(p)
		}
		if err != nil && !(c.has('f') && errors.Is(err, fs.ErrNotExist)) {
			c.warn("cannot remove '%s': %s", p, reason(err))
		} else if err == nil && c.has('v') {
			fmt.Fprintf(c.out, "removed '%s'\n", p)
		}
	}
	return c.code()
}

func unlink(c *ctx) int {
	if !c.getopt("") || len(c.args) != 1 {
		return c.usage("file")
	}
	if err := unix.Unlink(c.args[0]); err != nil {
		return c.fail(1, "cannot unlink '%s': %s", c.args[0], reason(err))
	}
	return 0
}

// target sorts out the last operand of cp, mv and ln: where each source goes.
func (c *ctx) target() (sources []string, dest func(src string) string, ok bool) {
	args, dir := c.args, c.opt('t', "")
	if c.has('t') {
		return args, func(s string) string { return filepath.Join(dir, filepath.Base(s)) }, len(args) > 0
	}
	if len(args) == 0 {
		c.warn("missing file operand")
		return nil, nil, false
	}
	if len(args) == 1 {
		c.warn("missing destination file operand after '%s'", args[0])
		return nil, nil, false
	}
	last := args[len(args)-1]
	args = args[:len(args)-1]
	st, err := os.Stat(last)
	isDir := err == nil && st.IsDir() && !c.has('T')
	if c.has('n') && c.name == "ln" {
		if l, err := os.Lstat(last); err == nil && l.Mode()&fs.ModeSymlink != 0 {
			isDir = false
		}
	}
	if len(args) > 1 && !isDir {
		c.warn("target '%s': %s", last, reason(unix.ENOTDIR))
		return nil, nil, false
	}
	return args, func(s string) string {
		if isDir {
			return filepath.Join(last, filepath.Base(s))
		}
		return last
	}, true
}

func cp(c *ctx) int {
	if !c.getopt("adfHiLlnPpRrst:Tuvx", "archive=a", "force=f", "no-clobber=n", "recursive=r", "preserve=p", "target-directory=t",
		"no-target-directory=T", "update=u", "verbose=v", "no-dereference=P", "dereference=L", "link=l", "symbolic-link=s") {
		return 1
	}
	sources, dest, ok := c.target()
	if !ok {
		return 1
	}
	k := copier{
		c: c, recursive: c.has('r') || c.has('R') || c.has('a'), preserve: c.has('p') || c.has('a'),
		keepLinks: (c.has('P') || c.has('d') || c.has('a') || c.has('r') || c.has('R')) && !c.has('L') && !c.has('H'),
		links:     map[[2]uint64]string{},
	}
	for _, s := range sources {
		k.copy(s, dest(s))
	}
	return c.code()
}

// A copier copies trees.
type copier struct {
	c                              *ctx
	recursive, preserve, keepLinks bool
	links                          map[[2]uint64]string // copied files with several names, by device and inode
}

func (k *copier) copy(src, dst string) {
	if err := k.copyErr(src, dst); err != nil {
		k.c.warn("cannot copy '%s' to '%s': %s", src, dst, reason(err))
	}
}

func (k *copier) copyErr(src, dst string) error {
	c := k.c
	stat := os.Stat
	if k.keepLinks {
		stat = os.Lstat
	}
	st, err := stat(src)
	if err != nil {
		c.warn("cannot stat '%s': %s", src, reason(err))
		return nil
	}
	sys := st.Sys().(*statT)
	if dstSt, err := os.Stat(dst); err == nil {
		d := dstSt.Sys().(*statT)
		if d.Dev == sys.Dev && d.Ino == sys.Ino {
			c.warn("'%s' and '%s' are the same file", src, dst)
			return nil
		}
		if c.has('n') && !st.IsDir() || c.has('u') && !st.IsDir() && !st.ModTime().After(dstSt.ModTime()) {
			return nil
		}
		if dstSt.IsDir() && !st.IsDir() {
			c.warn("cannot overwrite directory '%s' with non-directory", dst)
			return nil
		}
	}
	if c.has('v') {
		fmt.Fprintf(c.out, "'%s' -> '%s'\n", src, dst)
	}
	switch {
	case c.has('l') && !st.IsDir():
		return os.Link(src, dst)
	case c.has('s') && !st.IsDir():
		return os.Symlink(src, dst)
	case st.IsDir():
		if !k.recursive {
			c.warn("-r not specified; omitting directory '%s'", src)
			return nil
		}
		return k.copyDir(src, dst, st)
	case k.recursive && k.preserve && sys.Nlink > 1:
		id := [2]uint64{uint64(sys.Dev), sys.Ino}
		if first, ok := k.links[id]; ok {
			os.Remove(dst)
			return os.Link(first, dst)
		}
		k.links[id] = dst
	}
	switch mode := st.Mode(); {
	case mode&fs.ModeSymlink != 0:
		to, err := os.Readlink(src)
		if err != nil {
			return err
		}
		os.Remove(dst)
		if err := os.Symlink(to, dst); err != nil {
			return err
		}
	case mode.IsRegular() || !k.recursive:
		if err := k.copyFile(src, dst, st); err != nil {
			return err
		}
	default:
		os.Remove(dst)
		if err := unix.Mknod(dst, sys.Mode, int(sys.Rdev)); err != nil {
			return err
		}
	}
	return k.attributes(dst, st)
}

func (k *copier) copyDir(src, dst string, st fs.FileInfo) error {
	abs, _ := filepath.Abs(dst)
	from, _ := filepath.Abs(src)
	if strings.HasPrefix(abs+"/", from+"/") {
		k.c.warn("cannot copy a directory, '%s', into itself, '%s'", src, dst)
		return nil
	}
	if err := os.Mkdir(dst, st.Mode().Perm()|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	for _, e := range entries {
		k.copy(filepath.Join(src, e.Name()), filepath.Join(dst, e.Name()))
	}
	if !k.preserve {
		m := unix.Umask(0)
		unix.Umask(m)
		return os.Chmod(dst, st.Mode().Perm()&^fs.FileMode(m))
	}
	return k.attributes(dst, st)
}

func (k *copier) copyFile(src, dst string, st fs.FileInfo) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, st.Mode().Perm())
	if err != nil && k.c.has('f') && os.Remove(dst) == nil {
		out, err = os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, st.Mode().Perm())
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// attributes gives the copy the owner, mode and times of the original.
func (k *copier) attributes(dst string, st fs.FileInfo) error {
	if !k.preserve {
		return nil
	}
	sys := st.Sys().(*statT)
	// A user other than root cannot give files away; cp does not mind.
	if err := os.Lchown(dst, int(sys.Uid), int(sys.Gid)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if st.Mode()&fs.ModeSymlink == 0 {
		if err := unix.Chmod(dst, sys.Mode&0o7777); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{
		{Sec: sys.Atim.Sec, Nsec: sys.Atim.Nsec}, {Sec: sys.Mtim.Sec, Nsec: sys.Mtim.Nsec},
	}, unix.AT_SYMLINK_NOFOLLOW)
}

func mv(c *ctx) int {
	if !c.getopt("finuvt:T", "force=f", "no-clobber=n", "update=u", "verbose=v", "target-directory=t", "no-target-directory=T") {
		return 1
	}
	sources, dest, ok := c.target()
	if !ok {
		return 1
	}
	for _, s := range sources {
		d := dest(s)
		st, err := os.Lstat(s)
		if err != nil {
			c.warn("cannot stat '%s': %s", s, reason(err))
			continue
		}
		if dst, err := os.Lstat(d); err == nil {
			if c.has('n') || c.has('u') && !st.ModTime().After(dst.ModTime()) {
				continue
			}
			if os.SameFile(st, dst) {
				c.warn("'%s' and '%s' are the same file", s, d)
				continue
			}
			if dst.IsDir() && !st.IsDir() {
				c.warn("cannot overwrite directory '%s' with non-directory", d)
				continue
			}
		}
		err = unix.Rename(s, d)
		if errors.Is(err, unix.EXDEV) {
			// Another file system: copy with everything, then remove.
			k := copier{c: c, recursive: true, preserve: true, keepLinks: true, links: map[[2]uint64]string{}}
			failed := c.failed
			c.failed = false
			k.copy(s, d)
			err = nil
			if !c.failed {
				err = os.RemoveAll(s)
			}
			c.failed = c.failed || failed
		}
		if err != nil {
			c.warn("cannot move '%s' to '%s': %s", s, d, reason(err))
		} else if c.has('v') {
			fmt.Fprintf(c.out, "renamed '%s' -> '%s'\n", s, d)
		}
	}
	return c.code()
}

func ln(c *ctx) int {
	if !c.getopt("fnsrvt:TLP", "force=f", "symbolic=s", "no-dereference=n", "relative=r", "verbose=v", "target-directory=t", "no-target-directory=T") {
		return 1
	}
	if len(c.args) == 1 && !c.has('t') {
		c.args = append(c.args, ".")
	}
	sources, dest, ok := c.target()
	if !ok {
		return 1
	}
	for _, s := range sources {
		d, to := dest(s), s
		if c.has('r') {
			from, _ := filepath.Abs(filepath.Dir(d))
			abs, _ := filepath.Abs(s)
			if rel, err := filepath.Rel(from, abs); err == nil {
				to = rel
			}
		}
		if c.has('f') {
			os.Remove(d)
		}
		var err error
		kind := "hard"
		if c.has('s') {
			kind = "symbolic"
			err = os.Symlink(to, d)
		} else {
			err = os.Link(s, d)
		}
		if err != nil {
			c.warn("failed to create %s link '%s': %s", kind, d, reason(err))
		} else if c.has('v') {
			fmt.Fprintf(c.out, "'%s' -> '%s'\n", d, to)
		}
	}
	return c.code()
}

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

func readlink(c *ctx) int {
	if !c.getopt("fenmqsvz", "canonicalize=f", "canonicalize-existing=e", "canonicalize-missing=m", "no-newline=n", "zero=z") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	for i, p := range c.args {
		var to string
		var err error
		switch {
		case c.has('e'):
			to, err = canonical(p, 0)
		case c.has('f'):
			to, err = canonical(p, 1)
		case c.has('m'):
			to, err = canonical(p, 1<<30)
		default:
			to, err = os.Readlink(p)
		}
		if err != nil {
			if c.failed = true; c.has('v') {
				c.warn("%s: %s", p, reason(err))
			}
			continue
		}
		c.out.WriteString(to)
		switch {
		case c.has('z'):
			c.out.WriteByte(0)
		case !c.has('n') || i < len(c.args)-1:
			c.out.WriteByte('\n')
		}
	}
	return c.code()
}

// canonical returns the absolute path of p without links; up to missing last
// components need not exist.
func canonical(p string, missing int) (string, error) {
	if p == "" {
		return "", unix.ENOENT
	}
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err == nil || missing == 0 || !errors.Is(err, fs.ErrNotExist) {
		return real, err
	}
	// A link to what does not exist leads to where it would be.
	if to, lerr := os.Readlink(abs); lerr == nil {
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(abs), to)
		}
		return canonical(to, missing)
	}
	if abs == "/" {
		return abs, nil
	}
	dir, err := canonical(filepath.Dir(abs), missing-1)
	return filepath.Join(dir, filepath.Base(abs)), err
}

func realpath(c *ctx) int {
	if !c.getopt("emqsz", "canonicalize-existing=e", "canonicalize-missing=m", "no-symlinks=s", "quiet=q") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	for _, p := range c.args {
		missing := 1
		switch {
		case c.has('e'):
			missing = 0
		case c.has('m'):
			missing = 1 << 30
		}
		to, err := canonical(p, missing)
		if c.has('s') {
			to, err = filepath.Abs(p)
		}
		if err != nil {
			if c.failed = true; !c.has('q') {
				c.warn("%s: %s", p, reason(err))
			}
			continue
		}
		fmt.Fprintln(c.out, to)
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

func cmp(c *ctx) int {
	if !c.getopt("ln:s", "verbose=l", "bytes=n", "quiet=s", "silent=s") {
		return 2
	}
	if len(c.args) == 1 {
		c.args = append(c.args, "-")
	}
	if len(c.args) != 2 {
		return c.usage("[-l|-s] [-n bytes] file1 [file2]")
	}
	limit := int64(1<<63 - 1)
	if c.has('n') {
		var err error
		if limit, err = size(c.opt('n', "")); err != nil {
			return c.fail(2, "%v", err)
		}
	}
	var rs [2]io.Reader
	for i, n := range c.args {
		r, err := c.open(n)
		if err != nil {
			return c.fail(2, "%s: %s", n, reason(err))
		}
		defer r.Close()
		rs[i] = io.LimitReader(r, limit)
	}
	width := 1
	if c.has('l') {
		small := limit
		for _, n := range c.args {
			if st, err := os.Stat(n); err == nil && st.Mode().IsRegular() {
				small = min(small, st.Size())
			}
		}
		width = len(strconv.FormatInt(small, 10))
	}
	var bufs [2][64 << 10]byte
	at, line, code := int64(0), int64(1), 0
	for {
		var n [2]int
		for i, r := range rs {
			k, err := io.ReadFull(r, bufs[i][:])
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return c.fail(2, "%s: %s", c.args[i], reason(err))
			}
			n[i] = k
		}
		common := min(n[0], n[1])
		a, b := bufs[0][:common], bufs[1][:common]
		if !bytes.Equal(a, b) {
			for i := range a {
				if a[i] != b[i] {
					switch {
					case c.has('s'):
						return 1
					case c.has('l'):
						fmt.Fprintf(c.out, "%*d %3o %3o\n", width, at+int64(i)+1, a[i], b[i])
						code = 1
					default:
						fmt.Fprintf(c.out, "%s %s differ: char %d, line %d\n", c.args[0], c.args[1], at+int64(i)+1, line)
						return 1
					}
				}
				if a[i] == '\n' {
					line++
				}
			}
		} else {
			line += int64(bytes.Count(a, []byte("\n")))
		}
		at += int64(common)
		if n[0] != n[1] {
			if !c.has('s') {
				short := c.args[0]
				if n[1] < n[0] {
					short = c.args[1]
				}
				c.warn("EOF on %s after byte %d", short, at)
			}
			return 1
		}
		if n[0] == 0 {
			return code
		}
	}
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
