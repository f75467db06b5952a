package userland

import (
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func gzipCmd(c *ctx) int {
	if !c.getopt("cdfklnqrtv123456789", "stdout=c", "decompress=d", "force=f", "keep=k", "test=t", "best=9", "fast=1", "no-name=n") {
		return 1
	}
	decompress := c.has('d') || c.has('t') || c.name != "gzip"
	stdout := c.has('c') || c.name == "zcat"
	level := gzip.DefaultCompression
	for _, o := range c.opts {
		if isDigit(o.name) {
			level = int(o.name - '0')
		}
	}
	pump := func(w io.Writer, r io.Reader) error {
		if decompress {
			z, err := gzip.NewReader(r)
			if err != nil {
				return err
			}
			_, err = io.Copy(w, z)
			return err
		}
		z, err := gzip.NewWriterLevel(w, level)
		if err != nil {
			return err
		}
		if _, err := io.Copy(z, r); err != nil {
			return err
		}
		return z.Close()
	}
	names := c.args
	if len(names) == 0 {
		names = []string{"-"}
	}
	warned := false
	for _, n := range names {
		r, err := c.open(n)
		if err != nil {
			c.warn("%s: %s", n, reason(err))
			continue
		}
		to := n + ".gz"
		if decompress {
			var ok bool
			if to, ok = strings.CutSuffix(n, ".gz"); !ok {
				if to, ok = strings.CutSuffix(n, ".tgz"); ok {
					to += ".tar"
				}
			}
			if !ok && !stdout && n != "-" && !c.has('t') {
				c.warn("%s: unknown suffix -- ignored", n)
				r.Close()
				warned = true
				continue
			}
		}
		switch {
		case c.has('t'):
			err = pump(io.Discard, r)
		case stdout || n == "-":
			err = pump(c.out, r)
		default:
			err = c.gzipFile(r, n, to, pump)
		}
		r.Close()
		if errors.Is(err, fs.ErrExist) {
			c.warn("%s already exists; not overwritten", to)
			warned = true
			continue
		}
		if err != nil {
			c.warn("%s: %s", n, reason(err))
		}
	}
	if warned {
		return 2 // as gzip tells what it left alone from what failed
	}
	return c.code()
}

// gzipFile replaces n by its packed or unpacked copy.
func (c *ctx) gzipFile(r io.Reader, n, to string, pump func(io.Writer, io.Reader) error) error {
	st, err := os.Stat(n)
	if err != nil {
		return err
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if c.has('f') {
		mode = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(to, mode, st.Mode().Perm())
	if err != nil {
		return err
	}
	err = pump(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(to)
		return err
	}
	os.Chtimes(to, time.Time{}, st.ModTime())
	if !c.has('k') {
		return os.Remove(n)
	}
	return nil
}

// unpacked looks at the first bytes of r and unpacks what is packed.
func unpacked(r io.Reader) (io.Reader, error) {
	head := make([]byte, 6)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, err
	}
	all := io.MultiReader(strings.NewReader(string(head[:n])), r)
	switch s := string(head[:n]); {
	case strings.HasPrefix(s, "\x1f\x8b"):
		return gzip.NewReader(all)
	case strings.HasPrefix(s, "\xfd7zXZ\x00"):
		return xz.NewReader(all)
	case strings.HasPrefix(s, "\x28\xb5\x2f\xfd"):
		return zstd.NewReader(all, zstd.WithDecoderConcurrency(1))
	}
	return all, nil
}
