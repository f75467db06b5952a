package userland

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// trSet expands a set of tr: ranges, classes, escapes.
func trSet(s string) ([]byte, error) {
	classes := map[string]func(byte) bool{
		"alpha": isAlpha, "digit": isDigit, "alnum": func(b byte) bool { return isAlpha(b) || isDigit(b) },
		"upper": func(b byte) bool { return b >= 'A' && b <= 'Z' }, "lower": func(b byte) bool { return b >= 'a' && b <= 'z' },
		"space": isSpace, "blank": func(b byte) bool { return b == ' ' || b == '\t' },
		"punct": func(b byte) bool { return b > 32 && b < 127 && !isAlpha(b) && !isDigit(b) },
		"cntrl": func(b byte) bool { return b < 32 || b == 127 }, "print": func(b byte) bool { return b >= 32 && b < 127 },
		"graph": func(b byte) bool { return b > 32 && b < 127 }, "xdigit": func(b byte) bool { return strings.IndexByte("0123456789abcdefABCDEF", b) >= 0 },
	}
	var out []byte
	one := func() (byte, error) {
		ch := s[0]
		s = s[1:]
		if ch != '\\' || s == "" {
			return ch, nil
		}
		ch = s[0]
		s = s[1:]
		if i := strings.IndexByte("abfnrtv", ch); i >= 0 {
			return "\a\b\f\n\r\t\v"[i], nil
		}
		if ch >= '0' && ch <= '7' {
			v := int(ch - '0')
			for k := 0; k < 2 && s != "" && s[0] >= '0' && s[0] <= '7' && v*8+int(s[0]-'0') < 256; k++ {
				v, s = v*8+int(s[0]-'0'), s[1:]
			}
			return byte(v), nil
		}
		return ch, nil
	}
	for s != "" {
		if strings.HasPrefix(s, "[:") {
			if i := strings.Index(s[2:], ":]"); i >= 0 {
				name := s[2 : 2+i]
				in := classes[name]
				if in == nil {
					return nil, fmt.Errorf("invalid character class '%s'", name)
				}
				for b := range 256 {
					if in(byte(b)) {
						out = append(out, byte(b))
					}
				}
				s = s[i+4:]
				continue
			}
		}
		lo, err := one()
		if err != nil {
			return nil, err
		}
		if len(s) >= 2 && s[0] == '-' {
			s = s[1:]
			hi, err := one()
			if err != nil {
				return nil, err
			}
			if hi < lo {
				return nil, fmt.Errorf("range-endpoints of '%c-%c' are in reverse collating sequence order", lo, hi)
			}
			for b := int(lo); b <= int(hi); b++ {
				out = append(out, byte(b))
			}
			continue
		}
		out = append(out, lo)
	}
	return out, nil
}

func isAlpha(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' }

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

func isSpace(b byte) bool { return b == ' ' || b >= '\t' && b <= '\r' }

func tr(c *ctx) int {
	if !c.getopt("+cCdst", "complement=c", "delete=d", "squeeze-repeats=s", "truncate-set1=t") {
		return 1
	}
	want := 2
	if c.has('d') != c.has('s') {
		want = 1
	}
	if len(c.args) < want || len(c.args) > 2 || c.has('d') && !c.has('s') && len(c.args) == 2 {
		return c.fail(1, "wrong number of operands")
	}
	var sets [2][]byte
	for i, a := range c.args {
		s, err := trSet(a)
		if err != nil {
			return c.fail(1, "%v", err)
		}
		sets[i] = s
	}
	if c.has('c') || c.has('C') {
		var comp []byte
		for b := range 256 {
			if bytes.IndexByte(sets[0], byte(b)) < 0 {
				comp = append(comp, byte(b))
			}
		}
		sets[0] = comp
	}
	var to [256]byte
	var del, squeeze [256]bool
	for b := range 256 {
		to[b] = byte(b)
	}
	last := sets[0]
	switch {
	case c.has('d'):
		for _, b := range sets[0] {
			del[b] = true
		}
		last = sets[1]
	case len(c.args) == 2:
		last = sets[1]
		if len(sets[1]) == 0 {
			return c.fail(1, "when not truncating set1, string2 must be non-empty")
		}
		for i, b := range sets[0] {
			if c.has('t') && i >= len(sets[1]) {
				break
			}
			to[b] = sets[1][min(i, len(sets[1])-1)]
		}
	}
	if c.has('s') {
		for _, b := range last {
			squeeze[b] = true
		}
	}
	buf := make([]byte, 64<<10)
	prev := -1
	for {
		n, err := c.in.Read(buf)
		o := buf[:0]
		for _, b := range buf[:n] {
			if del[b] {
				continue
			}
			b = to[b]
			if squeeze[b] && prev == int(b) {
				continue
			}
			prev = int(b)
			o = append(o, b)
		}
		if _, werr := c.out.Write(o); werr != nil {
			return 1
		}
		if err == io.EOF {
			return 0
		}
		if err != nil {
			return c.fail(1, "read error: %s", reason(err))
		}
		// What came in one piece, from a person or a pipe, goes out at once.
		if n < len(buf) {
			c.out.Flush()
		}
	}
}
