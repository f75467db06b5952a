package userland

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

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
