package initrd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// AddTree adds a directory of the host with all that is below it.
//
// A symbolic link that stays inside the tree is kept as a link. One that leads
// to a file outside becomes a copy of that file, which the guest would not
// find otherwise; one that leads to a directory outside, or nowhere, is kept
// as it is. Sockets are left out. Other file systems mounted below are
// entered.
func (b *Builder) AddTree(hostDir, guestDir string) error {
	st, err := os.Stat(hostDir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s: not a directory", hostDir)
	}
	root, err := filepath.EvalSymlinks(hostDir)
	if err != nil {
		return err
	}
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	if err := checkGuestPath(guestDir); err != nil {
		return err
	}
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		return b.addEntry(root, p, path.Join(guestDir, filepath.ToSlash(rel)), d)
	})
}

// addEntry adds the file p of the tree at root.
func (b *Builder) addEntry(root, p, guestPath string, d fs.DirEntry) error {
	st, err := d.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone since its directory was read
	}
	if err != nil {
		return err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular():
		return b.AddFile(p, guestPath)
	case mode.IsDir():
		n := newDir()
		n.mode, n.mtime = unix.S_IFDIR|permBits(mode), b.mtime(st)
		return b.put(guestPath, n)
	case mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(p)
		if err != nil {
			return err
		}
		if !inside(root, p, target) {
			if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
				return b.AddFile(p, guestPath)
			}
		}
		return b.AddSymlink(target, guestPath)
	case mode&(fs.ModeDevice|fs.ModeNamedPipe) != 0:
		var rdev uint64
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			rdev = uint64(sys.Rdev)
		}
		return b.AddDevice(guestPath, mode, unix.Major(rdev), unix.Minor(rdev))
	}
	return nil
}

// inside reports whether the target of the link at p is relative and lies
// below root by name.
func inside(root, p, target string) bool {
	if filepath.IsAbs(target) {
		return false
	}
	rel, err := filepath.Rel(root, filepath.Join(filepath.Dir(p), target))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// A FileSpec says which host file goes where.
type FileSpec struct {
	Host  string
	Guest string // absolute
}

// ParseFileSpec parses "host[:guest]". Without a guest path the file appears
// where it is on the host. A name with a colon in it that exists is taken
// whole.
func ParseFileSpec(s string) (FileSpec, error) {
	if s == "" {
		return FileSpec{}, errors.New("file: empty: write HOST or HOST:GUEST")
	}
	spec := FileSpec{Host: s}
	if _, err := os.Lstat(s); err != nil {
		if i := strings.LastIndexByte(s, ':'); i >= 0 {
			spec.Host, spec.Guest = s[:i], s[i+1:]
			if spec.Host == "" {
				return FileSpec{}, fmt.Errorf("file %s: no host path: write HOST or HOST:GUEST", s)
			}
			if !path.IsAbs(spec.Guest) {
				return FileSpec{}, fmt.Errorf("file %s: guest path %q is not absolute", s, spec.Guest)
			}
		}
	}
	if spec.Guest == "" {
		abs, err := filepath.Abs(spec.Host)
		if err != nil {
			return FileSpec{}, fmt.Errorf("file %s: %w", s, err)
		}
		spec.Guest = filepath.ToSlash(abs)
	}
	// "/dir/" means a place in the directory, as for cp.
	if strings.HasSuffix(spec.Guest, "/") && filepath.Base(spec.Host) != "/" {
		if st, err := os.Stat(spec.Host); err == nil && !st.IsDir() {
			spec.Guest += filepath.Base(spec.Host)
		}
	}
	spec.Guest = path.Clean(spec.Guest)
	return spec, checkGuestPath(spec.Guest)
}

// AddSpec adds what spec names: a directory with all below it, a program or
// script with what it takes to run, or a plain file. Programs in a directory
// come without their libraries.
func (b *Builder) AddSpec(spec FileSpec) error {
	st, err := os.Stat(spec.Host)
	if err != nil {
		return fmt.Errorf("file %s: %w", spec.Host, errors.Unwrap(err))
	}
	if st.IsDir() {
		return b.AddTree(spec.Host, spec.Guest)
	}
	if st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
		runs, err := runsHere(spec.Host)
		if err != nil {
			return fmt.Errorf("file %w", err)
		}
		if runs {
			return b.AddELF(spec.Host, spec.Guest)
		}
	}
	return b.AddFile(spec.Host, spec.Guest)
}
