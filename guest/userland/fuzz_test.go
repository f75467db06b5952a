package userland

import (
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

// FuzzParsers feeds the little languages of the commands: no input may panic
// one, or make it run on.
func FuzzParsers(f *testing.F) {
	for _, s := range []string{
		"s/a\\(b\\)*/[&]\\1/gp;/x/,+2{p;d};$!N;y/abc/xyz/;2~3a text", "1,/re/Ic\\\ntext\n;:a;ba", "%-5.2f|%*d|%b\\x41\\0101%c", "a-z[:digit:]\\n\\377", "1,3-5,7-", "u=rwX,g-w+x,o=u", "10KiB", "2020-01-02 03:04:05",
		"%Y-%m-%d %H:%M:%S %-j %3N %:z %%", "[^]a-z[:alpha:]]\\{2,3\\}\\|^*x$", "( 1 + 2 ) * abc : a\\(.*\\)", "2.3nr,4", "-1.5d", "'a b' \"c\" \\d", "sleep 5 & kill $!; trap 'x' TERM; echo $0 &",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1000 {
			return
		}
		for _, ext := range []bool{false, true} {
			p := sedParser{s: s, ext: ext}
			p.parse()
		}
		for _, re := range []string{breToGo(s), ereToGo(s)} {
			regexp.Compile(re)
		}
		trSet(s)
		ranges(s)
		parseMode(s, 0o644, true, 0o022)
		count(s)
		duration(s)
		parseDate(s, false)
		parseDate(s, true)
		signalNumber(s)
		splitQuoted(s)
		parseKey(s, sortKey{})
		globRegexp(s, true)
		strftime(s, time.Unix(1e9, 123).UTC())
		statFormat(s, "p", &statT{})
		unescapeMount(s)
		// Widths are the user's wish and as large as the user wishes.
		if !strings.ContainsAny(s, "*123456789") {
			printf("printf", strings.SplitN(s, " ", 3), io.Discard, io.Discard)
		}
		e := exprParser{toks: strings.Fields(s)}
		e.binary(0)
		if sh, err := newShell("sh", nil, nil); err == nil {
			if prog, err := sh.parser.Parse(strings.NewReader(s), "x"); err == nil {
				rewrite(prog)
			}
		}
	})
}

// FuzzNumbers compares sort -n's comparison with itself turned round: it must
// be an order.
func FuzzNumbers(f *testing.F) {
	f.Add("-0.50", "12", " 007.7x")
	f.Add("", "-", "-0")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, ba := compareNumbers([]byte(a), []byte(b)), compareNumbers([]byte(b), []byte(a))
		if sign(ab) != -sign(ba) {
			t.Fatalf("%q and %q: %d and %d", a, b, ab, ba)
		}
		bc, ac := compareNumbers([]byte(b), []byte(c)), compareNumbers([]byte(a), []byte(c))
		if ab <= 0 && bc <= 0 && ac > 0 {
			t.Fatalf("%q <= %q <= %q, and the first is greater than the last", a, b, c)
		}
	})
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}
