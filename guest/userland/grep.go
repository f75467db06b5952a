package userland

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

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
