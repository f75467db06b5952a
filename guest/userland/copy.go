package userland

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

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
