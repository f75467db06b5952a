package session

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckOutput finds out before a run whether path can be written after it,
// and leaves no trace: a file that does not exist is not made, and a FIFO is
// not opened, for its reader would see an end.
func CheckOutput(path string) error {
	if _, ok := openDescriptor(path); ok {
		return nil
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(path)
		if st, err = os.Stat(dir); err != nil {
			return fmt.Errorf("%s: %w", path, reason(err))
		}
		if !st.IsDir() {
			return fmt.Errorf("%s: %s is not a directory", path, dir)
		}
		if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			return fmt.Errorf("%s: directory %s cannot be written: %w", path, dir, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, reason(err))
	}
	if st.IsDir() {
		return fmt.Errorf("%s: is a directory", path)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("%s: cannot be written: %w", path, err)
	}
	return nil
}

// reason takes the operation and the path off an error whose text will name
// the path anyway.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// IsStream reports whether path is something to write through, not a file to
// make or to replace: an open descriptor such as /dev/stdout, a FIFO, a
// device.
func IsStream(path string) bool {
	if _, ok := openDescriptor(path); ok {
		return true
	}
	st, err := os.Stat(path)
	return err == nil && !st.Mode().IsRegular() && !st.IsDir()
}

// OpenStream opens a path that IsStream. A descriptor is duplicated rather
// than opened by its name: an open file would begin anew at its start.
func OpenStream(path string) (*os.File, error) {
	if fd, ok := openDescriptor(path); ok {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return os.NewFile(uintptr(dup), path), nil
	}
	return os.OpenFile(path, os.O_WRONLY, 0)
}

// openDescriptor returns the number of the open descriptor that path names.
func openDescriptor(path string) (fd int, ok bool) {
	switch path {
	case "/dev/stdout":
		return 1, true
	case "/dev/stderr":
		return 2, true
	}
	for _, dir := range []string{"/dev/fd/", "/proc/self/fd/"} {
		if n, found := strings.CutPrefix(path, dir); found {
			if fd, err := strconv.ParseUint(n, 10, 31); err == nil {
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
					return int(fd), true
				}
			}
		}
	}
	return 0, false
}
