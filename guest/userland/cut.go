package userland

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// ranges parses the list of cut: "1,3-5,7-", counted from 1.
func ranges(s string) (list [][2]int, err error) {
	for _, f := range strings.Split(s, ",") {
		lo, hi, isRange := strings.Cut(f, "-")
		r := [2]int{1, 1 << 30}
		if lo != "" {
			if r[0], err = strconv.Atoi(lo); err != nil {
				return nil, fmt.Errorf("invalid field value '%s'", f)
			}
		}
		switch {
		case !isRange:
			r[1] = r[0]
		case hi != "":
			if r[1], err = strconv.Atoi(hi); err != nil {
				return nil, fmt.Errorf("invalid field value '%s'", f)
			}
		}
		if r[0] < 1 || lo == "" && hi == "" {
			return nil, fmt.Errorf("fields are numbered from 1")
		}
		if r[1] < r[0] {
			return nil, fmt.Errorf("invalid decreasing range")
		}
		list = append(list, r)
	}
	return list, nil
}

func within(list [][2]int, n int, invert bool) bool {
	for _, r := range list {
		if n >= r[0] && n <= r[1] {
			return !invert
		}
	}
	return invert
}

func cut(c *ctx) int {
	if !c.getopt("b:c:f:d:sno:", "bytes=b", "characters=c", "fields=f", "delimiter=d", "only-delimited=s", "output-delimiter=o", "complement=C") {
		return 1
	}
	mode, spec := byte(0), ""
	for _, m := range []byte("bcf") {
		if c.has(m) {
			if mode != 0 {
				return c.fail(1, "only one list may be specified")
			}
			mode, spec = m, c.opt(m, "")
		}
	}
	if mode == 0 {
		return c.fail(1, "you must specify a list of bytes, characters, or fields")
	}
	list, err := ranges(spec)
	if err != nil {
		return c.fail(1, "%v", err)
	}
	delim := c.opt('d', "\t")
	if len(delim) != 1 {
		return c.fail(1, "the delimiter must be a single character")
	}
	outDelim := c.opt('o', delim)
	c.eachInput(func(_ string, r io.Reader) error {
		return lines(r, func(l []byte, _ bool) bool {
			if mode != 'f' {
				for i, b := range l {
					if within(list, i+1, c.has('C')) {
						c.out.WriteByte(b)
					}
				}
				c.out.WriteByte('\n')
				return true
			}
			if !bytes.Contains(l, []byte(delim)) {
				if !c.has('s') {
					c.out.Write(l)
					c.out.WriteByte('\n')
				}
				return true
			}
			first := true
			for i, f := range bytes.Split(l, []byte(delim)) {
				if within(list, i+1, c.has('C')) {
					if !first {
						c.out.WriteString(outDelim)
					}
					first = false
					c.out.Write(f)
				}
			}
			c.out.WriteByte('\n')
			return true
		})
	})
	return c.code()
}

func uniq(c *ctx) int {
	if !c.getopt("cdiuf:s:", "count=c", "repeated=d", "unique=u", "ignore-case=i", "skip-fields=f", "skip-chars=s") {
		return 1
	}
	in, out := "-", ""
	switch len(c.args) {
	case 0:
	case 2:
		out = c.args[1]
		fallthrough
	case 1:
		in = c.args[0]
	default:
		return c.fail(1, "extra operand '%s'", c.args[2])
	}
	fields, _ := strconv.Atoi(c.opt('f', "0"))
	chars, _ := strconv.Atoi(c.opt('s', "0"))
	r, err := c.open(in)
	if err != nil {
		return c.fail(1, "%s: %s", in, reason(err))
	}
	defer r.Close()
	var w io.Writer = c.out
	if out != "" {
		f, err := os.Create(out)
		if err != nil {
			return c.fail(1, "%s: %s", out, reason(err))
		}
		defer f.Close()
		w = f
	}
	key := func(l []byte) string {
		for range fields {
			l = bytes.TrimLeft(l, " \t")
			i := bytes.IndexAny(l, " \t")
			if i < 0 {
				i = len(l)
			}
			l = l[i:]
		}
		l = l[min(chars, len(l)):]
		if c.has('i') {
			l = bytes.ToLower(l)
		}
		return string(l)
	}
	var prev []byte
	prevKey, n := "", 0
	emit := func() {
		if n == 0 || c.has('d') && n < 2 || c.has('u') && n > 1 {
			return
		}
		if c.has('c') {
			fmt.Fprintf(w, "%7d ", n)
		}
		fmt.Fprintf(w, "%s\n", prev)
	}
	err = lines(r, func(l []byte, _ bool) bool {
		k := key(l)
		if n > 0 && k == prevKey {
			n++
			return true
		}
		emit()
		prev, prevKey, n = append(prev[:0], l...), k, 1
		return true
	})
	emit()
	if err != nil {
		return c.fail(1, "%s: %s", in, reason(err))
	}
	return 0
}
