package userland

import (
	"fmt"
	"io"
	"strconv"
)

func hexdump(c *ctx) int {
	if !c.getopt("Cvn:s:x", "canonical=C", "no-squeezing=v", "length=n", "skip=s") {
		return 1
	}
	limit, skip := int64(1<<63-1), int64(0)
	for opt, to := range map[byte]*int64{'n': &limit, 's': &skip} {
		if c.has(opt) {
			n, err := strconv.ParseInt(c.opt(opt, ""), 0, 64)
			if err != nil || n < 0 {
				return c.fail(1, "invalid number '%s'", c.opt(opt, ""))
			}
			*to = n
		}
	}
	names := c.args
	if len(names) == 0 {
		names = []string{"-"}
	}
	var rs []io.Reader
	for _, n := range names {
		r, err := c.open(n)
		if err != nil {
			c.warn("%s: %s", n, reason(err))
			continue
		}
		defer r.Close()
		rs = append(rs, r)
	}
	r := io.MultiReader(rs...)
	if _, err := io.CopyN(io.Discard, r, skip); err != nil && err != io.EOF {
		return c.fail(1, "%s", reason(err))
	}
	r = io.LimitReader(r, limit)
	at := skip
	var prev [16]byte
	var buf [16]byte
	same := false
	off := func() {
		if c.has('C') {
			fmt.Fprintf(c.out, "%08x", at)
		} else {
			fmt.Fprintf(c.out, "%07x", at)
		}
	}
	for {
		clear(buf[:])
		n, err := io.ReadFull(r, buf[:])
		if n == 0 {
			if at > skip {
				off()
				c.out.WriteByte('\n')
			}
			if err != io.EOF {
				return c.fail(1, "%s", reason(err))
			}
			return c.code()
		}
		if n == 16 && at > skip && buf == prev && !c.has('v') {
			if !same {
				c.out.WriteString("*\n")
			}
			same = true
			at += 16
			continue
		}
		prev, same = buf, false
		off()
		if c.has('C') {
			c.out.WriteByte(' ')
			for i := range 16 {
				if i == 8 {
					c.out.WriteByte(' ')
				}
				if i < n {
					fmt.Fprintf(c.out, " %02x", buf[i])
				} else {
					c.out.WriteString("   ")
				}
			}
			c.out.WriteString("  |")
			for _, b := range buf[:n] {
				if b < 32 || b > 126 {
					b = '.'
				}
				c.out.WriteByte(b)
			}
			c.out.WriteByte('|')
		} else {
			for i := 0; i < 16; i += 2 {
				switch {
				case i < n && c.has('x'):
					fmt.Fprintf(c.out, "    %04x", uint16(buf[i])|uint16(buf[i+1])<<8)
				case i < n:
					fmt.Fprintf(c.out, " %04x", uint16(buf[i])|uint16(buf[i+1])<<8)
				case c.has('x'):
					c.out.WriteString("        ")
				default:
					c.out.WriteString("     ")
				}
			}
		}
		c.out.WriteByte('\n')
		at += int64(n)
	}
}
