package userland

import (
	"fmt"
	"regexp"
	"strings"
)

// A sedCmd is one command of a sed script.
type sedCmd struct {
	from, to   *sedAddr
	not        bool
	op         byte
	text       string // of a, i, c; label of b, t, T, :; file of r, w
	re         *regexp.Regexp
	repl       string
	global     bool
	print      bool
	nth        int
	table      *[256]byte // of y
	block      int        // of { : index of the command after its }
	active     bool       // inside a range
	activeLine int        // line at which the range began
}

// A sedAddr is an address: a line number, a step, the last line or an
// expression.
type sedAddr struct {
	line, step int
	last       bool
	re         *regexp.Regexp
	plus       bool // as second address: so many lines more
}

type sedParser struct {
	s   string
	pos int
	ext bool
	// lastRE is what an empty expression stands for.
	lastRE *regexp.Regexp
}

func (p *sedParser) peek() byte {
	if p.pos >= len(p.s) {
		return 0
	}
	return p.s[p.pos]
}

func (p *sedParser) blanks(set string) {
	for p.pos < len(p.s) && strings.IndexByte(set, p.s[p.pos]) >= 0 {
		p.pos++
	}
}

func (p *sedParser) number() int {
	n := 0
	for isDigit(p.peek()) && n < 1<<30 {
		n = n*10 + int(p.peek()-'0')
		p.pos++
	}
	return n
}

// until returns what comes before the delimiter, which a backslash protects.
func (p *sedParser) until(delim byte, isRE bool) (string, error) {
	var b strings.Builder
	for p.pos < len(p.s) {
		ch := p.s[p.pos]
		p.pos++
		switch {
		case ch == delim:
			return b.String(), nil
		case ch == '\\' && p.pos < len(p.s):
			n := p.s[p.pos]
			p.pos++
			if n == delim {
				// A delimiter that means something in the expression loses
				// that meaning, by having been one.
				b.WriteByte(n)
			} else {
				b.WriteByte('\\')
				b.WriteByte(n)
			}
		case ch == '[' && isRE:
			end := bracketEnd(p.s, p.pos-1)
			if end < 0 {
				b.WriteByte(ch)
				continue
			}
			b.WriteString(p.s[p.pos-1 : end+1])
			p.pos = end + 1
		case ch == '\n' && isRE:
			return "", fmt.Errorf("unterminated address regex")
		default:
			b.WriteByte(ch)
		}
	}
	return "", fmt.Errorf("unterminated '%c'", delim)
}

func (p *sedParser) regexp(s string, fold bool) (*regexp.Regexp, error) {
	if s == "" {
		if p.lastRE == nil {
			return nil, fmt.Errorf("no previous regular expression")
		}
		return p.lastRE, nil
	}
	if p.ext {
		s = ereToGo(s)
	} else {
		s = breToGo(s)
	}
	if fold {
		s = "(?i)" + s
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, fmt.Errorf("invalid regular expression: %v", err)
	}
	re.Longest()
	p.lastRE = re
	return re, nil
}

func (p *sedParser) address() (*sedAddr, error) {
	switch ch := p.peek(); {
	case isDigit(ch):
		a := &sedAddr{line: p.number()}
		if p.peek() == '~' {
			p.pos++
			a.step = p.number()
			if a.step == 0 {
				a.step = 1 << 30
			}
		}
		return a, nil
	case ch == '$':
		p.pos++
		return &sedAddr{last: true}, nil
	case ch == '+':
		p.pos++
		return &sedAddr{plus: true, line: p.number()}, nil
	case ch == '/' || ch == '\\':
		p.pos++
		if ch == '\\' {
			ch = p.peek()
			p.pos++
		}
		s, err := p.until(ch, true)
		if err != nil {
			return nil, err
		}
		fold := false
		for p.peek() == 'I' || p.peek() == 'M' {
			fold = fold || p.peek() == 'I'
			p.pos++
		}
		re, err := p.regexp(s, fold)
		return &sedAddr{re: re}, err
	}
	return nil, nil
}

func (p *sedParser) parse() ([]*sedCmd, error) {
	var cmds []*sedCmd
	var open []int
	for {
		p.blanks(" \t\n;")
		if p.pos >= len(p.s) {
			break
		}
		if p.peek() == '#' {
			for p.pos < len(p.s) && p.s[p.pos] != '\n' {
				p.pos++
			}
			continue
		}
		cmd := &sedCmd{nth: 1}
		var err error
		if cmd.from, err = p.address(); err != nil {
			return nil, err
		}
		p.blanks(" \t")
		if p.peek() == ',' && cmd.from != nil {
			p.pos++
			p.blanks(" \t")
			if cmd.to, err = p.address(); err != nil {
				return nil, err
			}
			if cmd.to == nil {
				return nil, fmt.Errorf("unexpected ','")
			}
		}
		p.blanks(" \t")
		for p.peek() == '!' {
			cmd.not = true
			p.pos++
			p.blanks(" \t")
		}
		cmd.op = p.peek()
		p.pos++
		switch cmd.op {
		case '{':
			open = append(open, len(cmds))
		case '}':
			if len(open) == 0 {
				return nil, fmt.Errorf("unexpected '}'")
			}
			cmds[open[len(open)-1]].block = len(cmds)
			open = open[:len(open)-1]
		case 's', 'y':
			if err := p.substitute(cmd); err != nil {
				return nil, err
			}
		case 'a', 'i', 'c':
			cmd.text = p.text()
		case ':', 'b', 't', 'T', 'r', 'w':
			p.blanks(" \t")
			end := "\n"
			if cmd.op != 'r' && cmd.op != 'w' {
				end = "\n;}"
			}
			start := p.pos
			for p.pos < len(p.s) && strings.IndexByte(end, p.s[p.pos]) < 0 {
				p.pos++
			}
			cmd.text = strings.TrimRight(p.s[start:p.pos], " \t")
		case 'q', 'Q':
			p.blanks(" \t")
			cmd.nth = p.number()
		case 'p', 'P', 'd', 'D', 'n', 'N', 'g', 'G', 'h', 'H', 'x', '=', 'l':
		case 0:
			return nil, fmt.Errorf("missing command")
		default:
			return nil, fmt.Errorf("unknown command: '%c'", cmd.op)
		}
		cmds = append(cmds, cmd)
		p.blanks(" \t")
		if ch := p.peek(); ch != 0 && strings.IndexByte("\n;}#", ch) < 0 && cmd.op != '{' && cmd.op != '}' {
			return nil, fmt.Errorf("extra characters after command")
		}
	}
	if len(open) > 0 {
		return nil, fmt.Errorf("unmatched '{'")
	}
	for _, cmd := range cmds {
		if strings.IndexByte("btT", cmd.op) >= 0 {
			cmd.block = len(cmds)
			found := cmd.text == ""
			for i, l := range cmds {
				if l.op == ':' && l.text == cmd.text && cmd.text != "" {
					cmd.block, found = i, true
				}
			}
			if !found {
				return nil, fmt.Errorf("can't find label for jump to '%s'", cmd.text)
			}
		}
	}
	return cmds, nil
}

// text parses the text of a, i and c, one line or lines that end in "\".
func (p *sedParser) text() string {
	p.blanks(" \t")
	if p.peek() == '\\' {
		p.pos++
		p.blanks(" \t")
		if p.peek() == '\n' {
			p.pos++
		}
	}
	var b strings.Builder
	for p.pos < len(p.s) && p.s[p.pos] != '\n' {
		if p.s[p.pos] == '\\' && p.pos+1 < len(p.s) {
			p.pos++
		}
		b.WriteByte(p.s[p.pos])
		p.pos++
	}
	return b.String() + "\n"
}

func (p *sedParser) substitute(cmd *sedCmd) error {
	delim := p.peek()
	if delim == 0 || delim == '\n' || delim == '\\' {
		return fmt.Errorf("unterminated '%c' command", cmd.op)
	}
	p.pos++
	a, err := p.until(delim, cmd.op == 's')
	if err != nil {
		return fmt.Errorf("unterminated '%c' command", cmd.op)
	}
	b, err := p.until(delim, false)
	if err != nil {
		return fmt.Errorf("unterminated '%c' command", cmd.op)
	}
	if cmd.op == 'y' {
		un := strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t")
		a, b = un.Replace(a), un.Replace(b)
		if len(a) != len(b) {
			return fmt.Errorf("strings for 'y' command are different lengths")
		}
		cmd.table = new([256]byte)
		for i := range 256 {
			cmd.table[i] = byte(i)
		}
		for i := range len(a) {
			cmd.table[a[i]] = b[i]
		}
		return nil
	}
	fold := false
	for {
		switch ch := p.peek(); {
		case ch == 'g':
			cmd.global = true
		case ch == 'p':
			cmd.print = true
		case ch == 'i' || ch == 'I':
			fold = true
		case isDigit(ch):
			if cmd.nth = p.number(); cmd.nth == 0 {
				return fmt.Errorf("number option to 's' command may not be zero")
			}
			continue
		case ch == 'w':
			p.pos++
			p.blanks(" \t")
			start := p.pos
			for p.pos < len(p.s) && p.s[p.pos] != '\n' {
				p.pos++
			}
			cmd.text = p.s[start:p.pos]
			continue
		default:
			cmd.repl = b
			cmd.re, err = p.regexp(a, fold)
			return err
		}
		p.pos++
	}
}
