package userland

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

func xargs(c *ctx) int {
	if !c.getopt("+0rtxpI:n:L:P:s:d:a:i", "null=0", "no-run-if-empty=r", "verbose=t", "max-args=n", "max-lines=L", "max-procs=P", "replace=I", "delimiter=d", "arg-file=a") {
		return 1
	}
	in := c.in
	if c.has('a') {
		f, err := os.Open(c.opt('a', ""))
		if err != nil {
			return c.fail(1, "Cannot open input file '%s': %s", c.opt('a', ""), reason(err))
		}
		defer f.Close()
		in = f
	}
	all, err := io.ReadAll(in)
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	replace := c.opt('I', "")
	if c.has('i') {
		replace = "{}"
	}
	var items []string
	perLine := replace != "" || c.has('L')
	switch {
	case c.has('0') || c.has('d'):
		delim := "\x00"
		if !c.has('0') {
			if delim = c.opt('d', ""); delim == `\n` {
				delim = "\n"
			} else if delim == `\0` {
				delim = "\x00"
			}
		}
		items = strings.Split(strings.TrimSuffix(string(all), delim), delim)
		if len(all) == 0 {
			items = nil
		}
	case perLine:
		for l := range strings.Lines(string(all)) {
			if l = strings.Trim(strings.TrimSuffix(l, "\n"), " \t"); l != "" {
				items = append(items, l)
			}
		}
	default:
		if items, err = splitQuoted(string(all)); err != nil {
			return c.fail(1, "%v", err)
		}
	}
	cmd := c.args
	if len(cmd) == 0 {
		cmd = []string{"echo"}
	}
	per := len(items)
	if c.has('n') {
		if per, err = strconv.Atoi(c.opt('n', "")); err != nil || per < 1 {
			return c.fail(1, "invalid number \"%s\" for -n option", c.opt('n', ""))
		}
	}
	if perLine {
		per = 1
		if c.has('L') {
			per, _ = strconv.Atoi(c.opt('L', "1"))
		}
	}
	// As many arguments as execve surely takes: 128 KiB, as xargs does it.
	const maxBytes = 128 << 10
	null, err := os.Open(os.DevNull)
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	defer null.Close()
	code := 0
	run := func(args []string) bool {
		if c.has('t') {
			fmt.Fprintln(c.err, strings.Join(args, " "))
		}
		switch k := c.runCommand(args, null); {
		case k == 255:
			code = 124
			c.warn("%s: exited with status 255; aborting", args[0])
			return false
		case k > 128:
			code = 125
			return false
		case k == 126 || k == 127:
			code = k
			return false
		case k != 0:
			code = 123
		}
		return true
	}
	if len(items) == 0 {
		if !c.has('r') && replace == "" {
			run(cmd)
		}
		return code
	}
	for len(items) > 0 {
		n, size := 0, 0
		for n < len(items) && n < max(per, 1) && (n == 0 || size+len(items[n])+1 < maxBytes) {
			size += len(items[n]) + 1
			n++
		}
		var args []string
		if replace != "" {
			for _, a := range cmd {
				args = append(args, strings.ReplaceAll(a, replace, items[0]))
			}
		} else {
			args = append(append(args, cmd...), items[:n]...)
			if c.has('L') {
				args = cmd[:len(cmd):len(cmd)]
				for _, l := range items[:n] {
					args = append(args, strings.Fields(l)...)
				}
			}
		}
		items = items[n:]
		if !run(args) {
			break
		}
	}
	return code
}

// splitQuoted splits at blanks and newlines, with the quotes of xargs.
func splitQuoted(s string) (words []string, err error) {
	var w []byte
	in := false
	for i := 0; i < len(s); i++ {
		switch ch := s[i]; {
		case isSpace(ch):
			if in {
				words, w, in = append(words, string(w)), nil, false
			}
		case ch == '\\' && i+1 < len(s):
			i++
			w, in = append(w, s[i]), true
		case ch == '\'' || ch == '"':
			end := strings.IndexByte(s[i+1:], ch)
			if end < 0 || strings.Contains(s[i+1:i+1+end], "\n") {
				return nil, fmt.Errorf("unmatched quote; by default quotes are special to xargs unless you use the -0 option")
			}
			w, in = append(w, s[i+1:i+1+end]...), true
			i += end + 1
		default:
			w, in = append(w, ch), true
		}
	}
	if in {
		words = append(words, string(w))
	}
	return words, nil
}
