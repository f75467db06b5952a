package userland

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

func sed(c *ctx) int {
	// The suffix of -i is attached or missing, which no other option has.
	inPlace, suffix := false, ""
	args := c.args[:0:0]
	for i, a := range c.args {
		if a == "--" {
			args = append(args, c.args[i:]...)
			break
		}
		i := 0 // where an "i" is among letters that take no argument
		if len(a) > 1 && a[0] == '-' && a[1] != '-' {
			for i = 1; i < len(a) && strings.IndexByte("nrEsu", a[i]) >= 0; i++ {
			}
		}
		switch {
		case a == "--in-place":
			inPlace = true
		case strings.HasPrefix(a, "--in-place="):
			inPlace, suffix = true, a[len("--in-place="):]
		case i > 0 && i < len(a) && a[i] == 'i':
			inPlace, suffix = true, a[i+1:]
			if i > 1 {
				args = append(args, a[:i])
			}
		default:
			args = append(args, a)
		}
	}
	c.args = args
	if !c.getopt("nrEse:f:u", "quiet=n", "silent=n", "regexp-extended=E", "expression=e", "file=f", "separate=s", "unbuffered=u") {
		return 1
	}
	return c.sedMain(inPlace, suffix)
}

// sedMain is sed after its options.
func (c *ctx) sedMain(inPlace bool, suffix string) int {
	var script strings.Builder
	given := false
	for _, o := range c.opts {
		switch o.name {
		case 'e':
			script.WriteString(o.arg + "\n")
			given = true
		case 'f':
			b, err := os.ReadFile(o.arg)
			if err != nil {
				return c.fail(1, "couldn't open file %s: %s", o.arg, reason(err))
			}
			script.Write(b)
			script.WriteByte('\n')
			given = true
		}
	}
	if !given {
		if len(c.args) == 0 {
			return c.usage("[-nEi] script [file...]")
		}
		script.WriteString(c.args[0])
		c.args = c.args[1:]
	}
	p := sedParser{s: script.String(), ext: c.has('E') || c.has('r')}
	cmds, err := p.parse()
	if err != nil {
		return c.fail(1, "-e expression #1, char %d: %v", p.pos, err)
	}
	r := sedRun{c: c, cmds: cmds, quiet: c.has('n') || strings.HasPrefix(script.String(), "#n\n"), out: c.out, files: map[string]*bufio.Writer{}}
	defer r.close()
	if !inPlace {
		return r.run(c.args)
	}
	for _, f := range c.args {
		if code := r.inPlace(f, suffix); code != 0 {
			return code
		}
	}
	return c.code()
}

type sedRun struct {
	c     *ctx
	cmds  []*sedCmd
	quiet bool
	out   *bufio.Writer
	files map[string]*bufio.Writer
	open  []*os.File

	in      *sedInput
	line    int
	pattern []byte
	hold    []byte
	after   []string // text to print after the cycle; "r" files as "\x00name"
}

// close writes what the w commands collected.
func (r *sedRun) close() {
	for _, w := range r.files {
		w.Flush()
	}
	for _, f := range r.open {
		f.Close()
	}
}

// A sedInput is all inputs one after the other, one line ahead so that the
// last one is known.
type sedInput struct {
	c     *ctx
	names []string
	cur   io.ReadCloser
	br    *bufio.Reader
	next  []byte
	nl    bool // the line read ahead had a newline
	have  bool
	done  bool
}

func (in *sedInput) fill() {
	for !in.have && !in.done {
		if in.br == nil {
			if len(in.names) == 0 {
				in.done = true
				return
			}
			n := in.names[0]
			in.names = in.names[1:]
			r, err := in.c.open(n)
			if err != nil {
				in.c.warn("can't read %s: %s", n, reason(err))
				continue
			}
			in.cur, in.br = r, bufio.NewReader(r)
		}
		l, err := in.br.ReadBytes('\n')
		if len(l) > 0 {
			in.have = true
			in.nl = l[len(l)-1] == '\n'
			in.next = bytes.TrimSuffix(l, []byte("\n"))
		}
		if err != nil {
			in.cur.Close()
			in.br = nil
		}
	}
}

func (in *sedInput) take() (l []byte, nl, ok bool) {
	in.fill()
	if !in.have {
		return nil, false, false
	}
	in.have = false
	return in.next, in.nl, true
}

func (in *sedInput) last() bool {
	in.fill()
	return !in.have
}

func (r *sedRun) run(names []string) int {
	if len(names) == 0 {
		names = []string{"-"}
	}
	r.in = &sedInput{c: r.c, names: names}
	for {
		l, nl, ok := r.in.take()
		if !ok {
			break
		}
		r.line++
		r.pattern = append(r.pattern[:0], l...)
		quit, code := r.cycle(nl)
		if quit {
			return code
		}
	}
	if r.c.failed {
		return 2
	}
	return 0
}

func (r *sedRun) match(a *sedAddr) bool {
	switch {
	case a.last:
		return r.in.last()
	case a.re != nil:
		return a.re.Match(r.pattern)
	case a.step > 0:
		return r.line >= a.line && (r.line-a.line)%a.step == 0
	}
	return r.line == a.line
}

func (r *sedRun) selected(cmd *sedCmd) bool {
	hit := true
	switch {
	case cmd.from == nil:
	case cmd.to == nil:
		hit = r.match(cmd.from)
	case cmd.active:
		switch to := cmd.to; {
		case to.plus:
			cmd.active = r.line < cmd.activeLine+to.line
		case to.re == nil && !to.last:
			if r.line > to.line {
				cmd.active = false
				hit = r.match(cmd.from)
				if hit {
					cmd.active = r.line < to.line
				}
			} else {
				cmd.active = r.line < to.line
			}
		default:
			cmd.active = !r.match(to)
		}
	default:
		hit = r.match(cmd.from) || cmd.from.line == 0 && cmd.from.re == nil && !cmd.from.last && r.line == 1
		if hit {
			cmd.activeLine = r.line
			switch to := cmd.to; {
			case to.plus:
				cmd.active = to.line > 0
			case to.re == nil && !to.last:
				cmd.active = to.line > r.line
			case cmd.from.line == 0 && cmd.from.re == nil && to.re != nil:
				cmd.active = !r.match(to)
			default:
				cmd.active = !to.last || !r.in.last()
			}
		}
	}
	return hit != cmd.not
}

func (r *sedRun) emit(b []byte, nl bool) {
	r.out.Write(b)
	if nl {
		r.out.WriteByte('\n')
	}
}

// cycle runs the script on the pattern space.
func (r *sedRun) cycle(nl bool) (quit bool, code int) {
	replaced := false
	for i := 0; i < len(r.cmds); i++ {
		cmd := r.cmds[i]
		if cmd.op == '}' || cmd.op == ':' {
			continue
		}
		if !r.selected(cmd) {
			if cmd.op == '{' {
				i = cmd.block
			}
			continue
		}
		switch cmd.op {
		case 'p':
			r.emit(r.pattern, true)
		case 'P':
			l, _, _ := bytes.Cut(r.pattern, []byte("\n"))
			r.emit(l, true)
		case 'd':
			r.flushAfter()
			return false, 0
		case 'D':
			_, rest, more := bytes.Cut(r.pattern, []byte("\n"))
			r.flushAfter()
			if !more {
				return false, 0
			}
			r.pattern = append([]byte(nil), rest...)
			i, replaced = -1, false
		case 'n', 'N':
			if r.in.last() {
				if cmd.op == 'N' || !r.quiet {
					if !r.quiet {
						r.emit(r.pattern, nl)
					}
				}
				r.flushAfter()
				return true, 0
			}
			if cmd.op == 'n' {
				if !r.quiet {
					r.emit(r.pattern, true)
				}
				r.flushAfter()
				r.pattern = r.pattern[:0]
			} else {
				r.pattern = append(r.pattern, '\n')
			}
			var l []byte
			l, nl, _ = r.in.take()
			r.line++
			r.pattern = append(r.pattern, l...)
		case 'g':
			r.pattern = append(r.pattern[:0], r.hold...)
		case 'G':
			r.pattern = append(append(r.pattern, '\n'), r.hold...)
		case 'h':
			r.hold = append(r.hold[:0], r.pattern...)
		case 'H':
			r.hold = append(append(r.hold, '\n'), r.pattern...)
		case 'x':
			r.hold, r.pattern = r.pattern, r.hold
		case '=':
			fmt.Fprintln(r.out, r.line)
		case 'l':
			r.out.WriteString(strings.Trim(strconv.QuoteToASCII(string(r.pattern)), `"`) + "$\n")
		case 'i':
			r.out.WriteString(cmd.text)
		case 'a':
			r.after = append(r.after, cmd.text)
		case 'r':
			r.after = append(r.after, "\x00"+cmd.text)
		case 'c':
			if cmd.to == nil || cmd.not || !cmd.active {
				r.out.WriteString(cmd.text)
			}
			r.flushAfter()
			return false, 0
		case 'w':
			r.write(cmd.text)
		case 'y':
			for j, ch := range r.pattern {
				r.pattern[j] = cmd.table[ch]
			}
		case 's':
			if r.replace(cmd) {
				replaced = true
				if cmd.print {
					r.emit(r.pattern, true)
				}
				if cmd.text != "" {
					r.write(cmd.text)
				}
			}
		case 'b':
			i = cmd.block - 1
		case 't', 'T':
			if replaced == (cmd.op == 't') {
				i = cmd.block - 1
			}
			replaced = false
		case 'q':
			if !r.quiet {
				r.emit(r.pattern, nl)
			}
			r.flushAfter()
			return true, cmd.nth
		case 'Q':
			return true, cmd.nth
		}
	}
	if !r.quiet {
		r.emit(r.pattern, nl)
	}
	r.flushAfter()
	return false, 0
}

// flushAfter prints what a and r left for the end of the cycle.
func (r *sedRun) flushAfter() {
	for _, t := range r.after {
		if name, ok := strings.CutPrefix(t, "\x00"); ok {
			b, _ := os.ReadFile(name)
			r.out.Write(b)
		} else {
			r.out.WriteString(t)
		}
	}
	r.after = r.after[:0]
}

func (r *sedRun) write(name string) {
	if name == "/dev/stdout" {
		r.emit(r.pattern, true)
		return
	}
	w := r.files[name]
	if w == nil {
		f, err := os.Create(name)
		if err != nil {
			r.c.warn("couldn't open file %s: %s", name, reason(err))
			return
		}
		r.open = append(r.open, f)
		w = bufio.NewWriter(f)
		r.files[name] = w
	}
	w.Write(r.pattern)
	w.WriteByte('\n')
}

// replace does s on the pattern space and reports whether it did anything.
func (r *sedRun) replace(cmd *sedCmd) bool {
	src := r.pattern
	all := cmd.re.FindAllSubmatchIndex(src, -1)
	if len(all) < cmd.nth {
		return false
	}
	var out []byte
	at := 0
	for i, m := range all {
		if i+1 < cmd.nth {
			continue
		}
		out = append(out, src[at:m[0]]...)
		out = expandRepl(out, cmd.repl, src, m)
		at = m[1]
		if !cmd.global {
			break
		}
	}
	r.pattern = append(out, src[at:]...)
	return true
}

// expandRepl appends the replacement with & and \1 to \9 filled in, and GNU's
// \U \L \E.
func expandRepl(out []byte, repl string, src []byte, m []int) []byte {
	mode := byte('E')
	add := func(b []byte) {
		switch mode {
		case 'U':
			b = bytes.ToUpper(b)
		case 'L':
			b = bytes.ToLower(b)
		}
		out = append(out, b...)
	}
	for i := 0; i < len(repl); i++ {
		switch ch := repl[i]; {
		case ch == '&':
			add(src[m[0]:m[1]])
		case ch == '\\' && i+1 < len(repl):
			i++
			switch n := repl[i]; {
			case isDigit(n):
				if k := int(n-'0') * 2; k+1 < len(m) && m[k] >= 0 {
					add(src[m[k]:m[k+1]])
				}
			case n == 'n':
				out = append(out, '\n')
			case n == 't':
				out = append(out, '\t')
			case n == 'U' || n == 'L' || n == 'E':
				mode = n
			default:
				add([]byte{n})
			}
		default:
			add([]byte{ch})
		}
	}
	return out
}

// inPlace runs the script on one file and puts the result in its place.
func (r *sedRun) inPlace(name, suffix string) int {
	st, err := os.Stat(name)
	if err != nil {
		return r.c.fail(4, "can't read %s: %s", name, reason(err))
	}
	tmp := name + ".sed.tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode().Perm())
	if err != nil {
		return r.c.fail(4, "couldn't open temporary file %s: %s", tmp, reason(err))
	}
	r.out, r.line = bufio.NewWriter(f), 0
	r.run([]string{name})
	err = r.out.Flush()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && suffix != "" {
		err = os.Rename(name, name+suffix)
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		os.Remove(tmp)
		return r.c.fail(4, "cannot rename %s: %s", tmp, reason(err))
	}
	return 0
}
