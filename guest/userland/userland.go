package userland

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// An applet is one command. It returns the exit code.
type applet struct {
	name string
	run  func(*ctx) int
}

// applets is sorted by name. It is a plain table, not a map, so that it costs
// nothing when the binary starts as something else.
func applets() []applet {
	return []applet{
		{"[", bracket}, {"ash", shell}, {"base64", base64Cmd}, {"basename", basename}, {"cat", cat},
		{"chgrp", chgrp}, {"chmod", chmod}, {"chown", chown}, {"chroot", chrootCmd}, {"clear", clearCmd}, {"cmp", cmp}, {"cp", cp},
		{"cut", cut}, {"date", date}, {"dd", dd}, {"df", df}, {"dirname", dirname}, {"dmesg", dmesg}, {"du", du},
		{"echo", echo}, {"egrep", grep}, {"env", envCmd}, {"expr", expr}, {"false", falseCmd}, {"fgrep", grep}, {"find", find},
		{"free", free}, {"grep", grep}, {"groups", groups}, {"gunzip", gzipCmd}, {"gzip", gzipCmd}, {"halt", shutdownCmd},
		{"head", head}, {"hexdump", hexdump}, {"hostname", hostname}, {"id", id}, {"insmod", insmod}, {"kill", kill},
		{"killall", killall}, {"ln", ln}, {"ls", ls}, {"lsmod", lsmod}, {"lsvmbus", lsvmbus}, {"md5sum", sum}, {"mkdir", mkdir},
		{"mkfifo", mkfifo}, {"mknod", mknod}, {"mktemp", mktemp}, {"modprobe", modprobe}, {"mount", mountCmd},
		{"mountpoint", mountpoint}, {"mv", mv}, {"nohup", nohup}, {"nproc", nproc}, {"pidof", pidof}, {"poweroff", shutdownCmd}, {"printenv", printenv},
		{"printf", printfCmd}, {"ps", ps}, {"pwd", pwd}, {"readlink", readlink}, {"realpath", realpath}, {"reboot", shutdownCmd},
		{"reset", clearCmd}, {"rev", rev}, {"rm", rm}, {"rmdir", rmdir}, {"rmmod", rmmod}, {"sed", sed}, {"seq", seq}, {"setsid", setsid}, {"sh", shell},
		{"sha1sum", sum}, {"sha256sum", sum}, {"sha512sum", sum}, {"shutdown", shutdownCmd}, {"sleep", sleep},
		{"sort", sortCmd}, {"stat", stat}, {"stty", stty}, {"sync", syncCmd}, {"sysctl", sysctl}, {"tac", tac}, {"tail", tail}, {"tar", tarCmd}, {"tee", tee},
		{"test", test}, {"time", timeCmd}, {"timeout", timeout}, {"touch", touch}, {"tr", tr}, {"true", trueCmd},
		{"truncate", truncate}, {"tty", tty}, {"umount", umount}, {"uname", uname}, {"uniq", uniq}, {"unlink", unlink},
		{"uptime", uptime}, {"usleep", sleep}, {"wc", wc}, {"which", which}, {"whoami", whoami}, {"xargs", xargs}, {"yes", yes},
		{"zcat", gzipCmd},
	}
}

// Applets returns the names of all commands, sorted.
func Applets() []string {
	var names []string
	for _, a := range applets() {
		names = append(names, a.name)
	}
	return names
}

// Main runs the command of that name with the arguments after it, on this
// process's standard streams, and returns its exit code. ok is false when
// there is no such command.
func Main(name string, args []string) (code int, ok bool) {
	run := lookup(name)
	if run == nil {
		return 0, false
	}
	c := &ctx{name: name, args: args, in: os.Stdin, out: bufio.NewWriterSize(os.Stdout, 32<<10), err: os.Stderr}
	return c.finish(run(c)), true
}

func lookup(name string) func(*ctx) int {
	for _, a := range applets() {
		if a.name == name {
			return a.run
		}
	}
	return nil
}

// A ctx is one run of a command.
type ctx struct {
	name string
	args []string // without the name; without options after getopt
	in   io.Reader
	out  *bufio.Writer
	err  io.Writer

	opts   []option
	failed bool // something was reported with warn
}

// finish flushes the output. A command whose output could not be written has
// failed, silently if its reader has just gone away.
func (c *ctx) finish(code int) int {
	if err := c.out.Flush(); err != nil && code == 0 {
		code = 1
		if !errors.Is(err, unix.EPIPE) {
			fmt.Fprintf(c.err, "%s: write error: %s\n", c.name, reason(err))
		}
	}
	return code
}

// warn reports an error of one operand; the command goes on and will fail.
func (c *ctx) warn(format string, args ...any) {
	c.failed = true
	c.out.Flush()
	fmt.Fprintf(c.err, "%s: %s\n", c.name, fmt.Sprintf(format, args...))
}

// fail reports an error that ends the command with the code.
func (c *ctx) fail(code int, format string, args ...any) int {
	c.warn(format, args...)
	return code
}

// code returns 1 when something was reported, else 0.
func (c *ctx) code() int {
	if c.failed {
		return 1
	}
	return 0
}

// reason returns the system's words for err, without the call and the path
// that Go puts in front.
func reason(err error) string {
	var pe *fs.PathError
	var le *os.LinkError
	var se *os.SyscallError
	for {
		switch {
		case errors.As(err, &pe) && err != pe.Err:
			err = pe.Err
			continue
		case errors.As(err, &le) && err != le.Err:
			err = le.Err
			continue
		case errors.As(err, &se) && err != se.Err:
			err = se.Err
			continue
		}
		break
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		s := no.Error()
		return strings.ToUpper(s[:1]) + s[1:]
	}
	return err.Error()
}

// An option is one option as given.
type option struct {
	name byte
	arg  string
}

// getopt takes the options off c.args. short lists the option letters, each
// with a ":" behind it if it takes an argument; a "+" in front ends the
// options at the first operand. long maps long names to letters, as "all=a".
// An unknown option is reported and ok is false.
func (c *ctx) getopt(short string, long ...string) (ok bool) {
	stop := strings.HasPrefix(short, "+")
	takesArg := func(b byte) (known, arg bool) {
		i := strings.IndexByte(short, b)
		if i < 0 || b == ':' || b == '+' {
			return false, false
		}
		return true, i+1 < len(short) && short[i+1] == ':'
	}
	var rest []string
	args := c.args
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			rest = append(rest, args...)
			args = nil
		case strings.HasPrefix(a, "--"):
			name, val, hasVal := strings.Cut(a[2:], "=")
			var letter byte
			for _, l := range long {
				if n, by, _ := strings.Cut(l, "="); n == name {
					letter = by[0]
				}
			}
			if letter == 0 {
				c.warn("unrecognized option '%s'", a)
				return false
			}
			_, arg := takesArg(letter)
			if arg && !hasVal {
				if len(args) == 0 {
					c.warn("option '--%s' requires an argument", name)
					return false
				}
				val, args = args[0], args[1:]
			} else if !arg && hasVal {
				c.warn("option '--%s' doesn't allow an argument", name)
				return false
			}
			c.opts = append(c.opts, option{letter, val})
		case len(a) > 1 && a[0] == '-':
			for i := 1; i < len(a); i++ {
				known, arg := takesArg(a[i])
				if !known {
					c.warn("invalid option -- '%c'", a[i])
					return false
				}
				o := option{name: a[i]}
				if arg {
					if o.arg = a[i+1:]; o.arg == "" {
						if len(args) == 0 {
							c.warn("option requires an argument -- '%c'", a[i])
							return false
						}
						o.arg, args = args[0], args[1:]
					}
					i = len(a)
				}
				c.opts = append(c.opts, o)
			}
		default:
			rest = append(rest, a)
			if stop {
				rest = append(rest, args...)
				args = nil
			}
		}
	}
	c.args = rest
	return true
}

// has reports whether an option was given.
func (c *ctx) has(name byte) bool {
	for _, o := range c.opts {
		if o.name == name {
			return true
		}
	}
	return false
}

// opt returns the argument of the last such option, or def.
func (c *ctx) opt(name byte, def string) string {
	for i := len(c.opts) - 1; i >= 0; i-- {
		if c.opts[i].name == name {
			return c.opts[i].arg
		}
	}
	return def
}

// usage reports a wrong call.
func (c *ctx) usage(text string) int {
	code := 1
	if c.name == "cmp" || strings.HasSuffix(c.name, "grep") {
		code = 2 // where 1 means something else
	}
	return c.fail(code, "usage: %s %s", c.name, text)
}

// open opens an operand for reading; "-" is the standard input.
func (c *ctx) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(c.in), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.IsDir() {
		f.Close()
		return nil, unix.EISDIR
	}
	return f, nil
}

// eachInput calls f with each operand opened, or with the standard input when
// there is none. What cannot be opened or read is reported.
func (c *ctx) eachInput(f func(name string, r io.Reader) error) {
	names := c.args
	if len(names) == 0 {
		names = []string{"-"}
	}
	for _, n := range names {
		r, err := c.open(n)
		if err == nil {
			err = f(n, r)
			r.Close()
		}
		if err != nil {
			if c.brokenOutput(err) {
				return
			}
			c.warn("%s: %s", n, reason(err))
		}
	}
}

// brokenOutput reports whether err comes from our own output, after which
// going on is pointless; finish reports it.
func (c *ctx) brokenOutput(err error) bool {
	_, werr := c.out.Write(nil)
	return werr != nil || errors.Is(err, unix.EPIPE)
}

// lines calls f with each line of r, without its newline; last says that it
// had none. f returns false to stop.
func lines(r io.Reader, f func(line []byte, last bool) bool) error {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			long := append([]byte(nil), line...)
			for err == bufio.ErrBufferFull {
				line, err = br.ReadSlice('\n')
				long = append(long, line...)
			}
			line = long
		}
		if len(line) > 0 {
			last := line[len(line)-1] != '\n'
			if !last {
				line = line[:len(line)-1]
			}
			if !f(line, last) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func trueCmd(*ctx) int  { return 0 }
func falseCmd(*ctx) int { return 1 }

func basename(c *ctx) int {
	if !c.getopt("+as:z", "multiple=a", "suffix=s", "zero=z") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	names, suffix := c.args, c.opt('s', "")
	if !c.has('a') && !c.has('s') {
		names = c.args[:1]
		if len(c.args) > 1 {
			suffix = c.args[1]
		}
		if len(c.args) > 2 {
			return c.fail(1, "extra operand '%s'", c.args[2])
		}
	}
	for _, n := range names {
		b := ""
		if n != "" {
			b = filepath.Base(n)
		}
		if b != suffix {
			b = strings.TrimSuffix(b, suffix)
		}
		fmt.Fprintln(c.out, b)
	}
	return 0
}

func dirname(c *ctx) int {
	if !c.getopt("+z", "zero=z") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	for _, n := range c.args {
		n = strings.TrimRight(n, "/")
		i := strings.LastIndexByte(n, '/')
		switch {
		case n == "" && c.args[0] != "":
			n = "/"
		case i < 0:
			n = "."
		default:
			if n = strings.TrimRight(n[:i], "/"); n == "" {
				n = "/"
			}
		}
		fmt.Fprintln(c.out, n)
	}
	return 0
}
