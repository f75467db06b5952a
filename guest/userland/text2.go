package userland

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
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
			if i := strings.Index(s, ":]"); i > 0 {
				in := classes[s[2:i]]
				if in == nil {
					return nil, fmt.Errorf("invalid character class '%s'", s[2:i])
				}
				for b := range 256 {
					if in(byte(b)) {
						out = append(out, byte(b))
					}
				}
				s = s[i+2:]
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

func grep(c *ctx) int {
	if !c.getopt("EFGPaHhIiLlnoqRrsvwxce:f:m:zA:B:C:", "extended-regexp=E", "fixed-strings=F", "ignore-case=i", "invert-match=v", "count=c",
		"files-with-matches=l", "files-without-match=L", "line-number=n", "only-matching=o", "quiet=q", "silent=q", "recursive=r",
		"no-messages=s", "word-regexp=w", "line-regexp=x", "regexp=e", "file=f", "max-count=m", "no-filename=h", "with-filename=H",
		"after-context=A", "before-context=B", "context=C", "text=a") {
		return 2
	}
	if c.has('P') || c.has('z') {
		return c.fail(2, "options -P and -z are not supported")
	}
	var patterns []string
	for _, o := range c.opts {
		switch o.name {
		case 'e':
			patterns = append(patterns, strings.Split(o.arg, "\n")...)
		case 'f':
			r, err := c.open(o.arg)
			if err != nil {
				return c.fail(2, "%s: %s", o.arg, reason(err))
			}
			lines(r, func(l []byte, _ bool) bool { patterns = append(patterns, string(l)); return true })
			r.Close()
		}
	}
	if !c.has('e') && !c.has('f') {
		if len(c.args) == 0 {
			return c.usage("[options] pattern [file...]")
		}
		patterns, c.args = strings.Split(c.args[0], "\n"), c.args[1:]
	}
	re, err := grepRegexp(patterns, c.has('F') || c.name == "fgrep", c.has('E') || c.name == "egrep", c.has('i'), c.has('w'), c.has('x'))
	if err != nil {
		return c.fail(2, "%v", err)
	}
	g := grepRun{c: c, re: re, max: -1, none: len(patterns) == 0}
	if c.has('m') {
		if g.max, err = strconv.Atoi(c.opt('m', "")); err != nil {
			return c.fail(2, "invalid max count")
		}
	}
	ctxLines := func(o byte) int {
		n, _ := strconv.Atoi(c.opt(o, c.opt('C', "0")))
		return n
	}
	g.after, g.before = ctxLines('A'), ctxLines('B')
	recursive := c.has('r') || c.has('R')
	if recursive && len(c.args) == 0 {
		c.args = []string{"."}
	}
	names := c.args
	if recursive {
		names = expandDirs(c, names)
	}
	g.name = (len(c.args) > 1 || recursive) && !c.has('h') || c.has('H')
	if len(names) == 0 && !recursive {
		names = []string{"-"}
	}
	for _, n := range names {
		r, err := c.open(n)
		if err == nil {
			err = g.file(n, r)
			r.Close()
		}
		if err != nil && !c.brokenOutput(err) {
			if c.failed = true; !c.has('s') {
				c.warn("%s: %s", n, reason(err))
			}
		}
		if g.matched && c.has('q') {
			return 0
		}
	}
	switch {
	case c.failed:
		return 2
	case g.matched:
		return 0
	}
	return 1
}

type grepRun struct {
	c             *ctx
	re            *regexp.Regexp
	none          bool // no patterns: nothing matches
	name          bool // print file names
	max           int
	after, before int
	matched       bool
}

func (g *grepRun) file(name string, r io.Reader) error {
	c := g.c
	label := name
	if name == "-" {
		label = "(standard input)"
	}
	prefix := func(n int, sep string) {
		if g.name {
			c.out.WriteString(label + sep)
		}
		if c.has('n') {
			fmt.Fprintf(c.out, "%d%s", n, sep)
		}
	}
	quiet := c.has('q') || c.has('l') || c.has('L') || c.has('c')
	n, hits, tail, printed := 0, 0, 0, 0
	type old struct {
		n int
		l []byte
	}
	var past []old
	binary := false
	err := lines(r, func(l []byte, _ bool) bool {
		n++
		if bytes.IndexByte(l, 0) >= 0 && !c.has('a') {
			binary = true
		}
		hit := !g.none && g.re.Match(l)
		if hit == c.has('v') {
			if tail > 0 && !quiet && !c.has('o') {
				tail--
				printed = n
				prefix(n, "-")
				c.out.Write(l)
				c.out.WriteByte('\n')
			} else if g.before > 0 {
				if past = append(past, old{n, append([]byte(nil), l...)}); len(past) > g.before {
					past = past[1:]
				}
			}
			return g.max < 0 || hits < g.max || tail > 0
		}
		if g.max >= 0 && hits >= g.max {
			return false
		}
		hits++
		g.matched = true
		if quiet {
			return (c.has('c') && (g.max < 0 || hits < g.max)) && !c.has('q')
		}
		if binary {
			fmt.Fprintf(c.out, "grep: %s: binary file matches\n", label)
			return false
		}
		if c.has('o') {
			if !c.has('v') {
				for _, m := range g.re.FindAll(l, -1) {
					if len(m) > 0 {
						prefix(n, ":")
						c.out.Write(m)
						c.out.WriteByte('\n')
					}
				}
			}
		} else {
			if (g.before > 0 || g.after > 0) && printed > 0 && n-len(past) > printed+1 {
				c.out.WriteString("--\n")
			}
			for _, p := range past {
				prefix(p.n, "-")
				c.out.Write(p.l)
				c.out.WriteByte('\n')
			}
			past = past[:0]
			prefix(n, ":")
			c.out.Write(l)
			if err := c.out.WriteByte('\n'); err != nil {
				return false
			}
			printed, tail = n, g.after
		}
		return g.max < 0 || hits < g.max || tail > 0
	})
	switch {
	case c.has('q'):
	case c.has('l') && hits > 0, c.has('L') && hits == 0:
		fmt.Fprintln(c.out, label)
	case c.has('c') && !c.has('l') && !c.has('L'):
		if g.name {
			c.out.WriteString(label + ":")
		}
		fmt.Fprintln(c.out, hits)
	}
	// A match that is to be seen now, as when a log is followed.
	c.out.Flush()
	return err
}

// grepRegexp builds one expression of several patterns.
func grepRegexp(patterns []string, fixed, extended, fold, word, line bool) (*regexp.Regexp, error) {
	var alts []string
	for _, p := range patterns {
		switch {
		case fixed:
			p = regexp.QuoteMeta(p)
		case extended:
			p = ereToGo(p)
		default:
			p = breToGo(p)
		}
		alts = append(alts, "(?:"+p+")")
	}
	s := strings.Join(alts, "|")
	if word {
		s = `(?:^|\b)(?:` + s + `)(?:\b|$)`
	}
	if line {
		s = "^(?:" + s + ")$"
	}
	if fold {
		s = "(?i)" + s
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, fmt.Errorf("invalid regular expression: %v", err)
	}
	re.Longest() // as POSIX has it
	return re, nil
}

// breToGo turns a POSIX basic regular expression, with GNU's \+ \? \| \<  \>
// \w \s, into Go's syntax.
func breToGo(p string) string { return reToGo(p, true) }

// ereToGo turns a POSIX extended one.
func ereToGo(p string) string { return reToGo(p, false) }

func reToGo(p string, basic bool) string {
	var b strings.Builder
	start := true // at the start of an expression, where * and ^ are special
	for i := 0; i < len(p); i++ {
		ch := p[i]
		wasStart := start
		start = false
		switch {
		case ch == '[':
			end := bracketEnd(p, i)
			if end < 0 {
				b.WriteString(p[i:]) // an error, which the compiler tells
				return b.String()
			}
			body := p[i+1 : end]
			b.WriteByte('[')
			if strings.HasPrefix(body, "^") {
				b.WriteByte('^')
				body = body[1:]
			}
			for j := 0; j < len(body); j++ {
				if body[j] == '[' && j+1 < len(body) && body[j+1] == ':' {
					if k := strings.Index(body[j:], ":]"); k > 0 {
						b.WriteString(body[j : j+k+2])
						j += k + 1
						continue
					}
				}
				if body[j] == '\\' || body[j] == '[' || body[j] == ']' || body[j] == '^' || body[j] == '&' || body[j] == '~' {
					b.WriteByte('\\')
				}
				b.WriteByte(body[j])
			}
			b.WriteByte(']')
			i = end
		case ch == '\\' && i+1 < len(p):
			i++
			switch n := p[i]; {
			case n == '<' || n == '>':
				b.WriteString(`\b`)
			case n == '`':
				b.WriteString(`\A`)
			case n == '\'':
				b.WriteString(`\z`)
			case strings.IndexByte("wWsSbB", n) >= 0:
				b.WriteString(`\` + string(n))
			case basic && strings.IndexByte("(){}|+?", n) >= 0:
				b.WriteByte(n)
				start = n == '(' || n == '|'
			case n == 'n':
				b.WriteString(`\n`)
			case n == 't':
				b.WriteString(`\t`)
			default:
				b.WriteString(regexp.QuoteMeta(string(n)))
			}
		case basic && strings.IndexByte("(){}|+?", ch) >= 0:
			b.WriteString(`\` + string(ch))
		case ch == '*' && wasStart:
			b.WriteString(`\*`)
		case ch == '^':
			if basic && !wasStart {
				b.WriteString(`\^`)
			} else {
				b.WriteByte('^')
				start = true
			}
		case ch == '$' && basic && i+1 < len(p) && !strings.HasPrefix(p[i+1:], `\)`) && !strings.HasPrefix(p[i+1:], `\|`):
			b.WriteString(`\$`)
		case !basic && (ch == '(' || ch == '|'):
			b.WriteByte(ch)
			start = true
		default:
			b.WriteByte(ch)
		}
	}
	return b.String()
}

// bracketEnd returns where the bracket expression at p[i] ends, or -1.
func bracketEnd(p string, i int) int {
	j := i + 1
	if j < len(p) && p[j] == '^' {
		j++
	}
	if j < len(p) && p[j] == ']' {
		j++
	}
	for ; j < len(p); j++ {
		if p[j] == '[' && j+1 < len(p) && p[j+1] == ':' {
			if k := strings.Index(p[j:], ":]"); k > 0 {
				j += k + 1
				continue
			}
		}
		if p[j] == ']' {
			return j
		}
	}
	return -1
}
