package userland

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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
