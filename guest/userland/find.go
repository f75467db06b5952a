package userland

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func find(c *ctx) int {
	f := finder{c: c, max: 1 << 30}
	for len(c.args) > 0 && !strings.HasPrefix(c.args[0], "-") && c.args[0] != "(" && c.args[0] != "!" {
		f.roots, c.args = append(f.roots, c.args[0]), c.args[1:]
	}
	if len(f.roots) == 0 {
		f.roots = []string{"."}
	}
	f.tokens = c.args
	expr, err := f.or()
	if err == nil && len(f.tokens) > 0 {
		err = fmt.Errorf("unexpected argument '%s'", f.tokens[0])
	}
	if err != nil {
		return c.fail(1, "%v", err)
	}
	if !f.acts {
		test := expr
		expr = func(e *found) bool {
			if test(e) {
				fmt.Fprintln(c.out, e.path)
			}
			return true
		}
	}
	for _, r := range f.roots {
		st, err := os.Lstat(r)
		if err != nil {
			c.warn("'%s': %s", r, reason(err))
			continue
		}
		f.visit(expr, r, st, 0)
	}
	for _, b := range f.batches {
		b()
	}
	return c.code()
}

type found struct {
	path  string
	st    fs.FileInfo
	prune bool
}

type predicate func(*found) bool

type finder struct {
	c        *ctx
	roots    []string
	tokens   []string
	acts     bool // an action other than printing was given
	min, max int
	depth    bool
	batches  []func()
}

func (f *finder) visit(expr predicate, p string, st fs.FileInfo, level int) {
	e := &found{path: p, st: st}
	if level >= f.min && !f.depth {
		expr(e)
	}
	if st.IsDir() && !e.prune && level < f.max {
		es, err := readDir(p)
		if err != nil {
			f.c.warn("'%s': %s", p, reason(err))
		}
		for _, d := range es {
			if dst, err := d.Info(); err == nil {
				f.visit(expr, strings.TrimSuffix(p, "/")+"/"+d.Name(), dst, level+1)
			}
		}
	}
	if level >= f.min && f.depth {
		expr(e)
	}
}

func (f *finder) next() (t string) {
	t, f.tokens = f.tokens[0], f.tokens[1:]
	return t
}

func (f *finder) or() (predicate, error) {
	a, err := f.and()
	for err == nil && len(f.tokens) > 0 && (f.tokens[0] == "-o" || f.tokens[0] == "-or") {
		f.next()
		var b predicate
		l := a
		if b, err = f.and(); err == nil {
			a = func(e *found) bool { return l(e) || b(e) }
		}
	}
	return a, err
}

func (f *finder) and() (predicate, error) {
	all := predicate(func(*found) bool { return true })
	for len(f.tokens) > 0 && f.tokens[0] != "-o" && f.tokens[0] != "-or" && f.tokens[0] != ")" {
		if f.tokens[0] == "-a" || f.tokens[0] == "-and" {
			f.next()
			continue
		}
		b, err := f.primary()
		if err != nil {
			return nil, err
		}
		l := all
		all = func(e *found) bool { return l(e) && b(e) }
	}
	return all, nil
}

func (f *finder) primary() (predicate, error) {
	t := f.next()
	arg := ""
	switch t {
	case "-name", "-iname", "-path", "-ipath", "-wholename", "-type", "-size", "-mtime", "-mmin", "-newer", "-maxdepth", "-mindepth", "-perm", "-user", "-group", "-links", "-inum", "-printf", "-regex":
		if len(f.tokens) == 0 {
			return nil, fmt.Errorf("missing argument to '%s'", t)
		}
		arg = f.next()
	}
	yes := func(*found) bool { return true }
	number := func(of func(*found) int64, unit int64) (predicate, error) {
		s, sign := arg, byte(0)
		if s != "" && (s[0] == '+' || s[0] == '-') {
			sign, s = s[0], s[1:]
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("invalid argument '%s' to '%s'", arg, t)
		}
		return func(e *found) bool {
			v := of(e)
			if unit > 1 {
				v = (v + unit - 1) / unit
			}
			switch sign {
			case '+':
				return v > n
			case '-':
				return v < n
			}
			return v == n
		}, nil
	}
	switch t {
	case "(":
		p, err := f.or()
		if err == nil && (len(f.tokens) == 0 || f.next() != ")") {
			err = fmt.Errorf("missing ')'")
		}
		return p, err
	case "!", "-not":
		if len(f.tokens) == 0 {
			return nil, fmt.Errorf("expected an expression after '%s'", t)
		}
		p, err := f.primary()
		return func(e *found) bool { return !p(e) }, err
	case "-true":
		return yes, nil
	case "-false":
		return func(*found) bool { return false }, nil
	case "-depth":
		f.depth = true
		return yes, nil
	case "-xdev", "-mount", "-noleaf":
		return yes, nil
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(arg)
		if t == "-maxdepth" {
			f.max = n
		} else {
			f.min = n
		}
		return yes, err
	case "-name", "-iname":
		return glob(arg, t == "-iname", func(e *found) string { return filepath.Base(e.path) })
	case "-path", "-ipath", "-wholename":
		return glob(arg, t == "-ipath", func(e *found) string { return e.path })
	case "-type":
		kinds := map[string]uint32{"f": unix.S_IFREG, "d": unix.S_IFDIR, "l": unix.S_IFLNK, "b": unix.S_IFBLK, "c": unix.S_IFCHR, "p": unix.S_IFIFO, "s": unix.S_IFSOCK}
		var want []uint32
		for _, k := range strings.Split(arg, ",") {
			m, ok := kinds[k]
			if !ok {
				return nil, fmt.Errorf("unknown argument to -type: %s", arg)
			}
			want = append(want, m)
		}
		return func(e *found) bool { return slices.Contains(want, e.st.Sys().(*statT).Mode&unix.S_IFMT) }, nil
	case "-empty":
		return func(e *found) bool {
			if e.st.IsDir() {
				es, err := os.ReadDir(e.path)
				return err == nil && len(es) == 0
			}
			return e.st.Mode().IsRegular() && e.st.Size() == 0
		}, nil
	case "-size":
		units := map[byte]int64{'c': 1, 'w': 2, 'b': 512, 'k': 1024, 'M': 1 << 20, 'G': 1 << 30}
		unit := int64(512)
		if u, ok := units[arg[max(0, len(arg)-1)]]; ok {
			unit, arg = u, arg[:len(arg)-1]
		}
		return number(func(e *found) int64 { return e.st.Size() }, unit)
	case "-links":
		return number(func(e *found) int64 { return int64(e.st.Sys().(*statT).Nlink) }, 1)
	case "-inum":
		return number(func(e *found) int64 { return int64(e.st.Sys().(*statT).Ino) }, 1)
	case "-mtime":
		return number(func(e *found) int64 { return int64(time.Since(e.st.ModTime()) / (24 * time.Hour)) }, 1)
	case "-mmin":
		return number(func(e *found) int64 { return int64((time.Since(e.st.ModTime()) + time.Minute - 1) / time.Minute) }, 1)
	case "-newer":
		ref, err := os.Stat(arg)
		if err != nil {
			return nil, fmt.Errorf("'%s': %s", arg, reason(err))
		}
		return func(e *found) bool { return e.st.ModTime().After(ref.ModTime()) }, nil
	case "-user", "-group":
		file := "/etc/passwd"
		if t == "-group" {
			file = "/etc/group"
		}
		id, err := lookupID(file, arg)
		return func(e *found) bool {
			st := e.st.Sys().(*statT)
			if t == "-group" {
				return int(st.Gid) == id
			}
			return int(st.Uid) == id
		}, err
	case "-perm":
		mode, how := arg, byte(0)
		if mode != "" && (mode[0] == '-' || mode[0] == '/') {
			how, mode = mode[0], mode[1:]
		}
		m, err := parseMode(mode, 0, false, 0)
		return func(e *found) bool {
			p := e.st.Sys().(*statT).Mode & 0o7777
			switch how {
			case '-':
				return p&m == m
			case '/':
				return p&m != 0 || m == 0
			}
			return p == m
		}, err
	case "-prune":
		return func(e *found) bool { e.prune = true; return true }, nil
	case "-print", "-print0":
		f.acts = true
		end := "\n"
		if t == "-print0" {
			end = "\x00"
		}
		return func(e *found) bool { f.c.out.WriteString(e.path + end); return true }, nil
	case "-printf":
		f.acts = true
		return func(e *found) bool { f.c.out.WriteString(findFormat(arg, e)); return true }, nil
	case "-delete":
		f.acts, f.depth = true, true
		return func(e *found) bool {
			if err := os.Remove(e.path); err != nil {
				f.c.warn("cannot delete '%s': %s", e.path, reason(err))
				return false
			}
			return true
		}, nil
	case "-quit":
		f.acts = true
		return func(*found) bool { f.c.out.Flush(); os.Exit(f.c.code()); return false }, nil
	case "-exec", "-ok", "-execdir":
		return f.exec()
	}
	return nil, fmt.Errorf("unknown predicate '%s'", t)
}

// exec parses the command of -exec up to ";" or "{} +".
func (f *finder) exec() (predicate, error) {
	f.acts = true
	var cmd []string
	for {
		if len(f.tokens) == 0 {
			return nil, fmt.Errorf("missing argument to '-exec'")
		}
		t := f.next()
		if t == ";" {
			return func(e *found) bool {
				args := make([]string, len(cmd))
				for i, a := range cmd {
					args[i] = strings.ReplaceAll(a, "{}", e.path)
				}
				return f.c.runCommand(args, nil) == 0
			}, nil
		}
		if t == "+" && len(cmd) > 0 && cmd[len(cmd)-1] == "{}" {
			var paths []string
			base := cmd[:len(cmd)-1]
			run := func() {
				if len(paths) > 0 && f.c.runCommand(append(slices.Clone(base), paths...), nil) != 0 {
					f.c.failed = true
				}
				paths = nil
			}
			f.batches = append(f.batches, run)
			return func(e *found) bool {
				if paths = append(paths, e.path); len(paths) >= 1000 {
					run()
				}
				return true
			}, nil
		}
		cmd = append(cmd, t)
	}
}

func findFormat(format string, e *found) string {
	st := e.st.Sys().(*statT)
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		switch {
		case format[i] == '\\' && i+1 < len(format):
			i++
			if j := strings.IndexByte("abfnrtv0\\", format[i]); j >= 0 {
				b.WriteByte("\a\b\f\n\r\t\v\x00\\"[j])
			} else {
				b.WriteString(`\` + string(format[i]))
			}
		case format[i] == '%' && i+1 < len(format):
			i++
			switch format[i] {
			case 'p':
				b.WriteString(e.path)
			case 'f':
				b.WriteString(filepath.Base(e.path))
			case 'h':
				b.WriteString(filepath.Dir(e.path))
			case 's':
				fmt.Fprint(&b, st.Size)
			case 'm':
				fmt.Fprintf(&b, "%o", st.Mode&0o7777)
			case 'M':
				b.WriteString(modeString(st.Mode))
			case 'y':
				k := modeString(st.Mode)[0]
				if k == '-' {
					k = 'f'
				}
				b.WriteByte(k)
			case 'u':
				b.WriteString(nameOf("/etc/passwd", st.Uid))
			case 'g':
				b.WriteString(nameOf("/etc/group", st.Gid))
			case 'n':
				fmt.Fprint(&b, st.Nlink)
			case 'i':
				fmt.Fprint(&b, st.Ino)
			case 'l':
				to, _ := os.Readlink(e.path)
				b.WriteString(to)
			case '%':
				b.WriteByte('%')
			}
		default:
			b.WriteByte(format[i])
		}
	}
	return b.String()
}

// glob matches with a shell pattern in which "*" matches "/" too, as find and
// case have it.
func glob(pat string, fold bool, of func(*found) string) (predicate, error) {
	re, err := globRegexp(pat, fold)
	if err != nil {
		return nil, err
	}
	return func(e *found) bool { return re.MatchString(of(e)) }, nil
}
