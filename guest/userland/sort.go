package userland

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

func sortCmd(c *ctx) int {
	if !c.getopt("bcCdfghik:Mmno:rsS:t:T:uVz", "numeric-sort=n", "reverse=r", "unique=u", "key=k", "field-separator=t", "output=o", "ignore-case=f", "human-numeric-sort=h", "version-sort=V", "stable=s", "check=c", "zero-terminated=z", "general-numeric-sort=g") {
		return 2
	}
	if c.has('V') || c.has('M') || c.has('h') || c.has('z') {
		return c.fail(2, "options -h, -M, -V and -z are not supported")
	}
	global := sortKey{start: 1, end: 0}
	global.flags(c.opts)
	var keys []sortKey
	for _, o := range c.opts {
		if o.name == 'k' {
			k, err := parseKey(o.arg, global)
			if err != nil {
				return c.fail(2, "%v", err)
			}
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		keys = []sortKey{global}
	}
	sep := c.opt('t', "")
	if sep == `\t` {
		sep = "\t"
	}
	if len(sep) > 1 {
		return c.fail(2, "multi-character tab '%s'", sep)
	}
	var all [][]byte
	c.eachInput(func(_ string, r io.Reader) error {
		return lines(r, func(l []byte, _ bool) bool {
			all = append(all, append([]byte(nil), l...))
			return true
		})
	})
	if c.failed {
		return 2
	}
	byKeys := func(a, b []byte) int {
		for i := range keys {
			if d := keys[i].compare(a, b, sep); d != 0 {
				return d
			}
		}
		return 0
	}
	compare := func(a, b []byte) int {
		d := byKeys(a, b)
		if d == 0 && !c.has('s') && !c.has('u') {
			// The last resort, which -r turns round too.
			if d = bytes.Compare(a, b); c.has('r') {
				d = -d
			}
		}
		return d
	}
	if c.has('c') || c.has('C') {
		for i := 1; i < len(all); i++ {
			d := compare(all[i-1], all[i])
			if d > 0 || d == 0 && c.has('u') {
				if c.has('c') {
					name := "-"
					if len(c.args) > 0 {
						name = c.args[0]
					}
					c.warn("%s:%d: disorder: %s", name, i+1, all[i])
				}
				return 1
			}
		}
		return 0
	}
	slices.SortStableFunc(all, compare)
	if c.has('u') {
		all = slices.CompactFunc(all, func(a, b []byte) bool { return byKeys(a, b) == 0 })
	}
	w := io.Writer(c.out)
	if o := c.opt('o', ""); o != "" {
		f, err := os.Create(o)
		if err != nil {
			return c.fail(2, "open failed: %s: %s", o, reason(err))
		}
		defer f.Close()
		w = f
	}
	for _, l := range all {
		if _, err := w.Write(append(l, '\n')); err != nil {
			return 2
		}
	}
	return 0
}

// A sortKey is one -k of sort: fields and characters from 1; end 0 is the end
// of the line.
type sortKey struct {
	start, startChar, end, endChar                   int
	numeric, general, reverse, fold, blank, dict, ni bool
}

func (k *sortKey) flags(opts []option) {
	for _, o := range opts {
		k.flag(o.name)
	}
}

func (k *sortKey) flag(b byte) bool {
	switch b {
	case 'n':
		k.numeric = true
	case 'g':
		k.general = true
	case 'r':
		k.reverse = true
	case 'f':
		k.fold = true
	case 'b':
		k.blank = true
	case 'd':
		k.dict = true
	case 'i':
		k.ni = true
	default:
		return false
	}
	return true
}

// parseKey parses "F[.C][opts][,F[.C][opts]]". A key with options of its own
// takes none of the global ones.
func parseKey(s string, global sortKey) (sortKey, error) {
	k := sortKey{start: 1}
	own := false
	for i, part := range strings.SplitN(s, ",", 2) {
		end := strings.IndexFunc(part, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
		if end < 0 {
			end = len(part)
		}
		for _, f := range []byte(part[end:]) {
			if !k.flag(f) {
				return k, fmt.Errorf("invalid key '%s'", s)
			}
			own = true
		}
		fs, cs, hasChar := strings.Cut(part[:end], ".")
		field, err := strconv.Atoi(fs)
		ch := 0
		if err == nil && hasChar {
			ch, err = strconv.Atoi(cs)
		}
		if err != nil || field < 1 {
			return k, fmt.Errorf("invalid key '%s'", s)
		}
		if i == 0 {
			k.start, k.startChar = field, ch
		} else {
			k.end, k.endChar = field, ch
		}
	}
	if !own {
		k.numeric, k.general, k.reverse, k.fold = global.numeric, global.general, global.reverse, global.fold
		k.blank, k.dict, k.ni = global.blank, global.dict, global.ni
	}
	return k, nil
}

// field returns where field n, from 1, begins and ends in l. Without a
// separator a field includes the blanks in front of it.
func field(l []byte, n int, sep string) (from, to int) {
	for i := 1; ; i++ {
		to = from
		if sep == "" {
			for to < len(l) && (l[to] == ' ' || l[to] == '\t') {
				to++
			}
			for to < len(l) && l[to] != ' ' && l[to] != '\t' {
				to++
			}
		} else {
			for to < len(l) && l[to] != sep[0] {
				to++
			}
		}
		if i == n || to >= len(l) {
			if i < n {
				from = len(l)
			}
			return from, to
		}
		if from = to; sep != "" {
			from++
		}
	}
}

func (k *sortKey) of(l []byte, sep string) []byte {
	from, _ := field(l, k.start, sep)
	if k.blank {
		for from < len(l) && (l[from] == ' ' || l[from] == '\t') {
			from++
		}
	}
	from = min(from+max(k.startChar-1, 0), len(l))
	to := len(l)
	if k.end > 0 {
		var f int
		f, to = field(l, k.end, sep)
		if k.endChar > 0 {
			if k.blank {
				for f < len(l) && (l[f] == ' ' || l[f] == '\t') {
					f++
				}
			}
			to = min(f+k.endChar, len(l))
		}
	}
	return l[from:max(from, to)]
}

func (k *sortKey) compare(a, b []byte, sep string) (d int) {
	x, y := k.of(a, sep), k.of(b, sep)
	switch {
	case k.numeric:
		d = compareNumbers(x, y)
	case k.general:
		fx, _ := strconv.ParseFloat(strings.TrimSpace(string(x)), 64)
		fy, _ := strconv.ParseFloat(strings.TrimSpace(string(y)), 64)
		switch {
		case fx < fy:
			d = -1
		case fx > fy:
			d = 1
		}
	default:
		if k.dict || k.ni {
			keep := func(s []byte) (o []byte) {
				for _, b := range s {
					if k.dict && (isAlpha(b) || isDigit(b) || b == ' ' || b == '\t') || !k.dict && b >= 32 && b < 127 {
						o = append(o, b)
					}
				}
				return o
			}
			x, y = keep(x), keep(y)
		}
		if k.fold {
			x, y = bytes.ToUpper(x), bytes.ToUpper(y)
		}
		d = bytes.Compare(x, y)
	}
	if k.reverse {
		d = -d
	}
	return d
}

// compareNumbers compares decimal numbers of any length at the start of x and
// y; what is no number is 0.
func compareNumbers(x, y []byte) int {
	parse := func(s []byte) (neg bool, whole, frac []byte) {
		s = bytes.TrimLeft(s, " \t")
		if len(s) > 0 && s[0] == '-' {
			neg, s = true, s[1:]
		}
		i := 0
		for i < len(s) && isDigit(s[i]) {
			i++
		}
		whole = bytes.TrimLeft(s[:i], "0")
		if i < len(s) && s[i] == '.' {
			j := i + 1
			for j < len(s) && isDigit(s[j]) {
				j++
			}
			frac = bytes.TrimRight(s[i+1:j], "0")
		}
		if len(whole) == 0 && len(frac) == 0 {
			neg = false
		}
		return neg, whole, frac
	}
	xn, xw, xf := parse(x)
	yn, yw, yf := parse(y)
	if xn != yn {
		if xn {
			return -1
		}
		return 1
	}
	d := len(xw) - len(yw)
	if d == 0 {
		d = bytes.Compare(xw, yw)
	}
	if d == 0 {
		d = bytes.Compare(xf, yf)
	}
	if xn {
		d = -d
	}
	return d
}
