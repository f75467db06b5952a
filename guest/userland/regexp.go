package userland

import (
	"fmt"
	"regexp"
	"strings"
)

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
