package userland

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// printfCmd is printf(1). The shell has it too, as the interpreter's own knows
// neither width and precision nor octal escapes.
func printfCmd(c *ctx) int { return printf(c.name, c.args, c.out, c.err) }

func printf(name string, args []string, out, errs io.Writer) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintf(errs, "%s: missing operand\n", name)
		return 1
	}
	p := printer{format: args[0], args: args[1:]}
	for {
		before := len(p.args)
		if p.once() || len(p.args) == 0 || len(p.args) == before {
			break
		}
	}
	io.WriteString(out, p.b.String())
	for _, e := range p.errs {
		fmt.Fprintf(errs, "%s: %s\n", name, e)
	}
	if len(p.errs) > 0 {
		return 1
	}
	return 0
}

type printer struct {
	format string
	args   []string
	b      strings.Builder
	errs   []string
}

func (p *printer) next() string {
	if len(p.args) == 0 {
		return ""
	}
	a := p.args[0]
	p.args = p.args[1:]
	return a
}

// once goes through the format; stop says that a \c ended the output.
func (p *printer) once() (stop bool) {
	f := p.format
	for i := 0; i < len(f); i++ {
		switch {
		case f[i] == '\\':
			s, n, end := escape(f[i:], false)
			p.b.WriteString(s)
			if i += n - 1; end {
				return true
			}
		case f[i] != '%':
			p.b.WriteByte(f[i])
		case i+1 < len(f) && f[i+1] == '%':
			p.b.WriteByte('%')
			i++
		default:
			n, end := p.verb(f[i:])
			if n == 0 {
				p.errs = append(p.errs, fmt.Sprintf("%%%c: invalid directive", f[min(i+1, len(f)-1)]))
				return true
			}
			if i += n - 1; end {
				return true
			}
		}
	}
	return false
}

// verb prints one directive at the start of f and returns its length, 0 if it
// is none.
func (p *printer) verb(f string) (n int, stop bool) {
	spec := "%"
	i := 1
	for ; i < len(f) && strings.IndexByte("-+ #0'", f[i]) >= 0; i++ {
		if f[i] != '\'' {
			spec += f[i : i+1]
		}
	}
	number := func() {
		if i < len(f) && f[i] == '*' {
			i++
			w, _ := strconv.Atoi(p.next())
			spec += strconv.Itoa(w)
			return
		}
		for ; i < len(f) && isDigit(f[i]); i++ {
			spec += f[i : i+1]
		}
	}
	number()
	if i < len(f) && f[i] == '.' {
		spec += "."
		i++
		number()
	}
	for i < len(f) && strings.IndexByte("hlLqjzt", f[i]) >= 0 && i+1 < len(f) && strings.IndexByte("hlLqjztdiouxXeEfFgGaAc", f[i+1]) >= 0 {
		i++ // lengths mean nothing here
	}
	if i >= len(f) {
		return 0, false
	}
	verb := f[i]
	switch verb {
	case 's':
		fmt.Fprintf(&p.b, spec+"s", p.next())
	case 'b':
		var s strings.Builder
		a := p.next()
		for j := 0; j < len(a) && !stop; j++ {
			if a[j] != '\\' {
				s.WriteByte(a[j])
				continue
			}
			e, k, end := escape(a[j:], true)
			s.WriteString(e)
			j += k - 1
			stop = end
		}
		fmt.Fprintf(&p.b, spec+"s", s.String())
	case 'q':
		a := p.next()
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return r > 127 || !isAlpha(byte(r)) && !isDigit(byte(r)) && !strings.ContainsRune("_-./:=@%+,", r)
		}) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		fmt.Fprintf(&p.b, spec+"s", a)
	case 'c':
		a := p.next()
		fmt.Fprintf(&p.b, spec+"s", a[:min(1, len(a))])
	case 'd', 'i':
		fmt.Fprintf(&p.b, zeroPad(spec)+"d", p.integer())
	case 'u':
		fmt.Fprintf(&p.b, zeroPad(spec)+"d", uint64(p.integer()))
	case 'o', 'x', 'X':
		fmt.Fprintf(&p.b, zeroPad(spec)+string(verb), uint64(p.integer()))
	case 'e', 'E', 'f', 'F', 'g', 'G':
		a := p.next()
		x, err := strconv.ParseFloat(strings.TrimSpace(a), 64)
		if err != nil && a != "" {
			if k, ierr := strconv.ParseInt(a, 0, 64); ierr == nil {
				x = float64(k)
			} else {
				p.errs = append(p.errs, fmt.Sprintf("'%s': expected a numeric value", a))
			}
		}
		if (verb == 'g' || verb == 'G') && !strings.Contains(spec, ".") {
			spec += ".6" // C's default, where Go prints all digits
		}
		fmt.Fprintf(&p.b, spec+string(verb), x)
	default:
		return 0, false
	}
	return i + 1, stop
}

// zeroPad drops the 0 flag of integers that have a precision, as C has it.
func zeroPad(spec string) string {
	if !strings.Contains(spec, ".") {
		return spec
	}
	i := 1
	for i < len(spec) && strings.IndexByte("-+ #0", spec[i]) >= 0 {
		i++
	}
	return strings.ReplaceAll(spec[:i], "0", "") + spec[i:]
}

// integer takes an integer argument as C writes it, or 'c for a character.
func (p *printer) integer() int64 {
	a := p.next()
	if a == "" {
		return 0
	}
	if a[0] == '\'' || a[0] == '"' {
		for _, r := range a[1:] {
			return int64(r)
		}
		return 0
	}
	t := strings.TrimLeft(a, " \t")
	n, err := strconv.ParseInt(t, 0, 64)
	if err == nil {
		return n
	}
	if u, uerr := strconv.ParseUint(t, 0, 64); uerr == nil {
		return int64(u)
	}
	p.errs = append(p.errs, fmt.Sprintf("'%s': expected a numeric value", a))
	// What it begins with counts.
	end := 0
	for end < len(t) && (isDigit(t[end]) || end == 0 && (t[0] == '-' || t[0] == '+')) {
		end++
	}
	n, _ = strconv.ParseInt(t[:end], 10, 64)
	return n
}

// escape expands the backslash escape at the start of s and returns its
// length. In an argument of %b an octal escape begins with \0.
func escape(s string, arg bool) (out string, n int, stop bool) {
	if len(s) < 2 {
		return s, len(s), false
	}
	if i := strings.IndexByte(`abfnrtv\"'`, s[1]); i >= 0 {
		return "\a\b\f\n\r\t\v\\\"'"[i : i+1], 2, false
	}
	switch ch := s[1]; {
	case ch == 'c':
		return "", 2, true
	case ch == 'e':
		return "\x1b", 2, false
	case ch == 'x':
		v, i := 0, 2
		for ; i < len(s) && i < 4; i++ {
			d := strings.IndexByte("0123456789abcdef", s[i]|0x20)
			if isDigit(s[i]) {
				d = int(s[i] - '0')
			}
			if d < 0 {
				break
			}
			v = v*16 + d
		}
		if i > 2 {
			return string([]byte{byte(v)}), i, false
		}
	case ch >= '0' && ch <= '7':
		v, i, most := 0, 1, 4
		if arg && ch == '0' {
			i, most = 2, 5
		}
		for ; i < len(s) && i < most && s[i] >= '0' && s[i] <= '7'; i++ {
			v = v*8 + int(s[i]-'0')
		}
		return string([]byte{byte(v)}), i, false
	}
	return s[:2], 2, false
}
