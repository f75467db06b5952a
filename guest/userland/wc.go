package userland

import (
	"fmt"
	"io"
	"os"
	"strconv"
)

func wc(c *ctx) int {
	if !c.getopt("lwcmL", "lines=l", "words=w", "bytes=c", "chars=m", "max-line-length=L") {
		return 1
	}
	type counts struct{ l, w, m, b, max int64 }
	var all []counts
	var names []string
	var total counts
	c.eachInput(func(name string, r io.Reader) error {
		var n counts
		buf := make([]byte, 64<<10)
		inWord, width := false, int64(0)
		for {
			k, err := r.Read(buf)
			n.b += int64(k)
			for _, ch := range buf[:k] {
				if ch == '\n' {
					n.l++
					n.max, width = max(n.max, width), 0
				} else if ch&0xc0 != 0x80 {
					width++
				}
				if ch&0xc0 != 0x80 {
					n.m++
				}
				space := ch == ' ' || ch >= '\t' && ch <= '\r'
				if !space && !inWord {
					n.w++
				}
				inWord = !space
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
		n.max = max(n.max, width)
		all, names = append(all, n), append(names, name)
		total = counts{total.l + n.l, total.w + n.w, total.m + n.m, total.b + n.b, max(total.max, n.max)}
		return nil
	})
	if len(c.args) == 0 && len(names) > 0 {
		names[0] = ""
	}
	if len(c.args) > 1 {
		all, names = append(all, total), append(names, "total")
	}
	pick := func(n counts) (v []int64) {
		none := !c.has('l') && !c.has('w') && !c.has('c') && !c.has('m') && !c.has('L')
		for _, f := range []struct {
			on bool
			n  int64
		}{{none || c.has('l'), n.l}, {none || c.has('w'), n.w}, {c.has('m'), n.m}, {none || c.has('c'), n.b}, {c.has('L'), n.max}} {
			if f.on {
				v = append(v, f.n)
			}
		}
		return v
	}
	// One number of one input stands alone; columns are as wide as the largest
	// number needs, and 7 for what is not a file, as GNU wc does it.
	width := 1
	if len(pick(total)) > 1 || len(c.args) > 1 {
		width = len(strconv.FormatInt(total.b, 10))
		for _, name := range c.args {
			st, err := os.Stat(name)
			if name == "-" || err == nil && !st.Mode().IsRegular() {
				width = max(width, 7)
			}
		}
		if len(c.args) == 0 {
			width = 7
			if st, err := os.Stdin.Stat(); err == nil && st.Mode().IsRegular() && c.in == io.Reader(os.Stdin) {
				width = len(strconv.FormatInt(total.b, 10))
			}
		}
	}
	for i, n := range all {
		for j, v := range pick(n) {
			if j > 0 {
				c.out.WriteByte(' ')
			}
			fmt.Fprintf(c.out, "%*d", width, v)
		}
		if names[i] != "" {
			c.out.WriteString(" " + names[i])
		}
		c.out.WriteByte('\n')
	}
	return c.code()
}
