package userland

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
)

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
