package emuhost

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

// Outputs brings files that a command inside writes to where the caller wants them on the real host: the command is
// given paths below the exchange directory, which is the same directory on both sides, and Finish moves what appeared
// there. It is for one goroutine.
type Outputs struct {
	dir   string // below the exchange directory; "" until something is mapped
	xfer  string
	files []output
}

type output struct{ inside, dest string }

// NewOutputs returns an empty set for commands in h.
func (h *Host) NewOutputs() *Outputs { return &Outputs{xfer: h.Status.Xfer} }

// Map returns the path to give to a command whose output is wanted at dest. A file that exists at dest, or a directory,
// is copied first, so that the command can append to it; what exists and is neither, as /dev/null or a pipe, is left
// to the command as it is.
func (o *Outputs) Map(dest string) (string, error) {
	dest, err := filepath.Abs(dest)
	if err != nil {
		return "", fmt.Errorf("emulated host: output: %w", err)
	}
	for _, f := range o.files {
		if f.dest == dest {
			return f.inside, nil
		}
	}
	// Already visible on both sides.
	if rel, err := filepath.Rel(o.xfer, dest); err == nil && filepath.IsLocal(rel) {
		return dest, nil
	}
	st, err := os.Stat(dest)
	switch {
	case errors.Is(err, os.ErrNotExist):
		// Say now what would otherwise be found out when the work is done.
		if _, err := os.Stat(filepath.Dir(dest)); err != nil {
			return "", fmt.Errorf("emulated host: output %s: %w", dest, err)
		}
	case err != nil:
		return "", fmt.Errorf("emulated host: output: %w", err)
	case !st.IsDir() && !st.Mode().IsRegular():
		return dest, nil
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp(o.xfer, "out-"); err != nil {
			return "", fmt.Errorf("emulated host: output: %w", err)
		}
	}
	// A directory for each keeps the base name, from which programs derive others.
	parent := filepath.Join(o.dir, fmt.Sprint(len(o.files)))
	if err := os.Mkdir(parent, 0o700); err != nil {
		return "", fmt.Errorf("emulated host: output: %w", err)
	}
	f := output{filepath.Join(parent, filepath.Base(dest)), dest}
	if st != nil {
		if err := move(dest, f.inside, false); err != nil {
			return "", fmt.Errorf("emulated host: output: %w", err)
		}
	}
	o.files = append(o.files, f)
	return f.inside, nil
}

// Finish moves everything that appeared to its destination, beside siblings that a program wrote next to a mapped path,
// and removes the rest. A file the command did not write is no error: the caller knows whether it must exist.
func (o *Outputs) Finish() error {
	if o.dir == "" {
		return nil
	}
	var errs []error
	for _, f := range o.files {
		es, err := os.ReadDir(filepath.Dir(f.inside))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range es {
			if err := move(filepath.Join(filepath.Dir(f.inside), e.Name()), filepath.Join(filepath.Dir(f.dest), e.Name()), true); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if err := os.RemoveAll(o.dir); err != nil {
		errs = append(errs, err)
	}
	o.dir, o.files = "", nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("emulated host: outputs: %w", err)
	}
	return nil
}

// move copies or moves a file, or a directory into what may be one already. Only files and directories: a command
// inside has no business making the caller's side anything else.
func move(from, to string, remove bool) error {
	return filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel) // rel of the top is "."
		switch {
		case e.IsDir():
			if err := os.Mkdir(dst, 0o777); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
			return nil
		case !e.Type().IsRegular():
			return fmt.Errorf("%s is not a regular file", p)
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		if remove {
			// A rename would replace a file others have open, or a link; both are the caller's business.
			if _, err := os.Lstat(dst); errors.Is(err, os.ErrNotExist) && os.Rename(p, dst) == nil {
				return nil
			}
		}
		return copyFile(p, dst, st.Mode().Perm())
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// testFlags are the flags of a Go test binary that name files it writes.
var testFlags = []string{
	"test.blockprofile", "test.coverprofile", "test.cpuprofile", "test.gocoverdir", "test.memprofile",
	"test.mutexprofile", "test.outputdir", "test.testlogfile", "test.trace",
}

// MapTestArgs maps the files that a Go test binary is told to write, as "go test -exec" does with profiles, coverage and
// its log for the test cache, and returns the arguments changed accordingly. Relative names of profiles stay as they
// are when there is a -test.outputdir, to which they are relative.
func (o *Outputs) MapTestArgs(argv []string) ([]string, error) {
	out := append([]string(nil), argv...)
	outputdir := false
	for _, a := range argv {
		if strings.HasPrefix(strings.TrimLeft(a, "-"), "test.outputdir=") {
			outputdir = true
		}
	}
	for i, a := range argv {
		if i == 0 || !strings.HasPrefix(a, "-") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !ok || value == "" {
			continue
		}
		for _, f := range testFlags {
			if name != f || outputdir && f != "test.outputdir" && f != "test.gocoverdir" && f != "test.testlogfile" && !filepath.IsAbs(value) {
				continue
			}
			m, err := o.Map(value)
			if err != nil {
				return nil, err
			}
			out[i] = "-" + name + "=" + m
		}
	}
	return out, nil
}
