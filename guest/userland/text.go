package userland

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
)

func cat(c *ctx) int {
	if !c.getopt("nbsvETAeu", "number=n", "show-ends=E", "number-nonblank=b", "squeeze-blank=s", "show-all=A") {
		return 1
	}
	plain := true
	for _, o := range c.opts {
		plain = plain && o.name == 'u'
	}
	n, blank := 0, false
	c.eachInput(func(_ string, r io.Reader) error {
		if plain {
			// Straight to the file, so that the kernel may move the bytes.
			if err := c.out.Flush(); err != nil {
				return err
			}
			if f, ok := r.(*os.File); ok {
				_, err := io.Copy(os.Stdout, f)
				return err
			}
			return c.copyThrough(r)
		}
		return lines(r, func(l []byte, last bool) bool {
			if c.has('s') && len(l) == 0 && blank {
				return true
			}
			blank = len(l) == 0
			if c.has('b') && len(l) > 0 || c.has('n') && !c.has('b') {
				n++
				fmt.Fprintf(c.out, "%6d\t", n)
			}
			if c.has('T') || c.has('A') {
				l = bytes.ReplaceAll(l, []byte("\t"), []byte("^I"))
			}
			if c.has('v') || c.has('A') || c.has('e') {
				l = visible(l)
			}
			c.out.Write(l)
			if !last {
				if c.has('E') || c.has('A') || c.has('e') {
					c.out.WriteByte('$')
				}
				c.out.WriteByte('\n')
			}
			return true
		})
	})
	return c.code()
}

// copyThrough copies the standard input as it comes.
func (c *ctx) copyThrough(r io.Reader) error {
	if c.in == io.Reader(os.Stdin) {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	_, err := io.Copy(c.out, r)
	return err
}

// visible shows control characters as cat -v does.
func visible(l []byte) []byte {
	var b []byte
	for _, ch := range l {
		if ch >= 128 {
			b = append(b, 'M', '-')
			ch -= 128
		}
		switch {
		case ch == 127:
			b = append(b, '^', '?')
		case ch < 32 && ch != '\t':
			b = append(b, '^', ch+64)
		default:
			b = append(b, ch)
		}
	}
	return b
}

func tee(c *ctx) int {
	if !c.getopt("aip", "append=a", "ignore-interrupts=i") {
		return 1
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if c.has('a') {
		mode = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	var files []*os.File
	for _, n := range c.args {
		f, err := os.OpenFile(n, mode, 0o666)
		if err != nil {
			c.warn("%s: %s", n, reason(err))
			continue
		}
		defer f.Close()
		files = append(files, f)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := c.in.Read(buf)
		c.out.Write(buf[:n])
		c.out.Flush()
		for i, f := range files {
			if f == nil || n == 0 {
				continue
			}
			if _, werr := f.Write(buf[:n]); werr != nil {
				c.warn("%s: %s", f.Name(), reason(werr))
				files[i] = nil
			}
		}
		if err == io.EOF {
			return c.code()
		}
		if err != nil {
			return c.fail(1, "read error: %s", reason(err))
		}
	}
}

func tac(c *ctx) int {
	if !c.getopt("") {
		return 1
	}
	c.eachInput(func(_ string, r io.Reader) error {
		all, err := readLines(r)
		for _, l := range slices.Backward(all) {
			c.out.Write(l)
		}
		return err
	})
	return c.code()
}

func rev(c *ctx) int {
	if !c.getopt("") {
		return 1
	}
	c.eachInput(func(_ string, r io.Reader) error {
		return lines(r, func(l []byte, last bool) bool {
			rs := []rune(string(l))
			slices.Reverse(rs)
			c.out.WriteString(string(rs))
			if !last {
				c.out.WriteByte('\n')
			}
			return true
		})
	})
	return c.code()
}
