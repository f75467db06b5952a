package userland

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// shell is sh: "sh [-eux...] [-c script [name [arg...]] | file [arg...]]",
// scripts from standard input, and a simple line mode on a terminal.
func shell(c *ctx) int {
	var script *string
	var set []string
	interactive, fromStdin := false, false
	args := c.args
	wantScript := false
options:
	for len(args) > 0 {
		a := args[0]
		switch {
		case a == "--" || a == "-":
			args = args[1:]
			break options
		case a == "--login" || a == "--posix" || a == "--norc" || a == "--noprofile":
			args = args[1:]
		case len(a) > 1 && (a[0] == '-' || a[0] == '+'):
			args = args[1:]
			for _, f := range a[1:] {
				switch f {
				case 'c':
					wantScript = true
				case 'i':
					interactive = true
				case 's':
					fromStdin = true
				case 'l':
				case 'o':
					if len(args) == 0 {
						return c.fail(2, "-o needs an argument")
					}
					set = append(set, a[:1]+"o", args[0])
					args = args[1:]
				default:
					set = append(set, a[:1]+string(f))
				}
			}
		default:
			break options
		}
	}
	if wantScript {
		if len(args) == 0 {
			return c.fail(2, "-c needs an argument")
		}
		script, args = &args[0], args[1:]
	}
	name := c.name
	var file *os.File
	switch {
	case script != nil:
		if len(args) > 0 {
			name, args = args[0], args[1:]
		}
	case len(args) > 0 && !fromStdin:
		f, err := os.Open(args[0])
		if err != nil {
			return c.fail(127, "cannot open %s: %s", args[0], reason(err))
		}
		defer f.Close()
		file, name, args = f, args[0], args[1:]
	}
	s, err := newShell(name, set, args)
	if err != nil {
		return c.fail(2, "%v", err)
	}
	switch {
	case script != nil:
		return s.runAll(strings.NewReader(*script))
	case file != nil:
		return s.runAll(file)
	case interactive || term.IsTerminal(0):
		return s.interact()
	}
	return s.runStream(os.Stdin)
}

// A shellRun is one shell: the interpreter and what surrounds it.
type shellRun struct {
	name   string
	r      *interp.Runner
	parser *syntax.Parser
	jobs   jobs
	traps  traps
}

func newShell(name string, set, params []string) (*shellRun, error) {
	s := &shellRun{name: name, parser: syntax.NewParser(syntax.Variant(syntax.LangBash))}
	env := os.Environ()
	opts := []interp.RunnerOption{
		interp.StdIO(os.Stdin, os.Stdout, os.Stderr),
		interp.Env(expand.ListEnviron(env...)),
		interp.ExecHandlers(s.exec),
		interp.CallHandler(s.call),
		interp.Params(append(append([]string(nil), set...), append([]string{"--"}, params...)...)...),
	}
	r, err := interp.New(opts...)
	if err != nil {
		return nil, err
	}
	s.r = r
	return s, errors.Join(s.set(jobVar, "0"), s.set(nameVar, "'"+strings.ReplaceAll(name, "'", `'\''`)+"'"))
}

// set sets a variable of the shell.
func (s *shellRun) set(name, value string) error {
	prog, err := s.parser.Parse(strings.NewReader(name+"="+value), "")
	if err != nil {
		return err
	}
	return s.r.Run(context.Background(), prog.Stmts[0])
}

// runAll runs a script that is all there.
func (s *shellRun) runAll(r io.Reader) int {
	prog, err := s.parser.Parse(r, s.name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	rewrite(prog)
	// Statement by statement, as an end of file would run the EXIT trap before
	// the traps of signals that came late.
	code := 0
	for _, st := range prog.Stmts {
		code = s.code(s.r.Run(context.Background(), st))
		if s.r.Exited() {
			return code
		}
	}
	return s.end(code)
}

// end is the end of a script: traps on it run.
func (s *shellRun) end(code int) int {
	if code = s.finishTraps(code); s.r.Exited() {
		return code
	}
	prog, err := s.parser.Parse(strings.NewReader(fmt.Sprintf("exit %d", code)), s.name)
	if err != nil {
		return code
	}
	return s.code(s.r.Run(context.Background(), prog))
}

// runStream runs a script as it is read, line by line, so that commands in it
// find what follows them in the input.
func (s *shellRun) runStream(f *os.File) int {
	code, exited := s.lines(oneByte{f}, func(bool) {})
	if exited {
		return code
	}
	return s.end(code)
}

// lines runs complete statements as their lines come. prompt is called before
// each line with whether it goes on an unfinished statement.
func (s *shellRun) lines(r io.Reader, prompt func(more bool)) (code int, exited bool) {
	// No more than a byte ahead of what r gives at a time: what a buffer held
	// would be lost to the commands.
	in := bufio.NewReaderSize(r, 16)
	for {
		prompt(false)
		text := ""
		for {
			line, err := in.ReadString('\n')
			text += line
			if err != nil && text == "" {
				return code, false
			}
			prog, perr := s.parser.Parse(strings.NewReader(text), s.name)
			if perr != nil && syntax.IsIncomplete(perr) && err == nil {
				prompt(true)
				continue
			}
			if perr != nil {
				fmt.Fprintln(os.Stderr, perr)
				code = 2
				s.status(code)
				break
			}
			rewrite(prog)
			for _, st := range prog.Stmts {
				code = s.code(s.r.Run(context.Background(), st))
				if s.r.Exited() {
					return code, true
				}
			}
			break
		}
	}
}

// status sets $?.
func (s *shellRun) status(code int) {
	if prog, err := s.parser.Parse(strings.NewReader(fmt.Sprintf("(exit %d)", code)), ""); err == nil {
		s.r.Run(context.Background(), prog.Stmts[0])
	}
}

// oneByte reads one byte at a time.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

// code turns what the interpreter returns into an exit code.
func (s *shellRun) code(err error) int {
	var status interp.ExitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", s.name, err)
	return 1
}

// interact is the line mode: prompt, read, run. The kernel's line discipline
// does the editing.
func (s *shellRun) interact() int {
	// The keys that end a command must not end its shell.
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGTERM)
	defer signal.Stop(ch)
	interp.Interactive(true)(s.r)
	code, _ := s.lines(oneByte{os.Stdin}, func(more bool) {
		if more {
			fmt.Fprint(os.Stderr, "> ")
			return
		}
		prompt := os.Getenv("PS1")
		if prompt == "" {
			host, _ := os.Hostname()
			prompt = fmt.Sprintf("%s:%s# ", host, s.r.Dir)
		}
		fmt.Fprint(os.Stderr, prompt)
	})
	if !s.r.Exited() {
		fmt.Fprintln(os.Stderr) // the end of the input left the prompt's line open
	}
	return code
}

// exec runs a command that is no builtin of the interpreter.
func (s *shellRun) exec(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	return func(ctx context.Context, args []string) error {
		hc := interp.HandlerCtx(ctx)
		if own, ok := strings.CutPrefix(args[0], ownPrefix); ok && own == "kill" || own == "umask" || own == "ulimit" || own == "printf" {
			args = append([]string{own}, args[1:]...)
		}
		switch args[0] {
		case "printf":
			if code := printf(s.name, args[1:], hc.Stdout, hc.Stderr); code != 0 {
				return interp.ExitStatus(code)
			}
			return nil
		case "umask":
			return umask(hc, args[1:])
		case "ulimit":
			return ulimit(hc, args[1:])
		}
		if err, ok := s.jobs.builtin(hc, args); ok {
			return err
		}
		job := hc.Env.Get(inVar).String()
		if job != "" {
			if sig := s.jobs.killed(job); sig != 0 {
				return hc.Builtin(ctx, []string{"exit", strconv.Itoa(128 + int(sig))})
			}
		}
		if args[0] == "kill" {
			return s.kill(hc, args[1:])
		}
		path, err := interp.LookPathDir(hc.Dir, hc.Env, args[0])
		if err != nil {
			return s.notFound(hc, args[0])
		}
		cmd := exec.Cmd{
			Path: path, Args: args, Dir: hc.Dir, Env: environ(hc.Env),
			Stdin: hc.Stdin, Stdout: hc.Stdout, Stderr: hc.Stderr,
		}
		err = cmd.Start()
		if errors.Is(err, unix.ENOEXEC) {
			if self, serr := interp.LookPathDir(hc.Dir, hc.Env, "sh"); serr == nil {
				cmd = exec.Cmd{
					Path: self, Args: append([]string{"sh", path}, args[1:]...), Dir: hc.Dir, Env: cmd.Env,
					Stdin: hc.Stdin, Stdout: hc.Stdout, Stderr: hc.Stderr,
				}
				err = cmd.Start()
			}
		}
		if err != nil {
			fmt.Fprintf(hc.Stderr, "%s: %s: %s\n", s.name, args[0], reason(err))
			if errors.Is(err, unix.ENOENT) {
				return interp.ExitStatus(127)
			}
			return interp.ExitStatus(126)
		}
		if job != "" {
			s.jobs.begin(job, cmd.Process.Pid)
			defer s.jobs.exited(job, cmd.Process.Pid)
		}
		return exitStatus(cmd.Wait())
	}
}

// notFound tells a missing command, 127, from one that cannot be executed, 126.
func (s *shellRun) notFound(hc interp.HandlerContext, name string) error {
	dirs := filepath.SplitList(hc.Env.Get("PATH").String())
	if strings.Contains(name, "/") {
		dirs = []string{""}
	}
	for _, d := range dirs {
		p := filepath.Join(d, name)
		if !filepath.IsAbs(p) {
			p = filepath.Join(hc.Dir, p)
		}
		if _, err := os.Stat(p); err == nil {
			fmt.Fprintf(hc.Stderr, "%s: %s: Permission denied\n", s.name, name)
			return interp.ExitStatus(126)
		}
	}
	fmt.Fprintf(hc.Stderr, "%s: %s: not found\n", s.name, name)
	return interp.ExitStatus(127)
}

// exitStatus turns the end of a process into what the shell sees.
func exitStatus(err error) error {
	var ee *exec.ExitError
	if !errors.As(err, &ee) {
		if err != nil {
			return interp.ExitStatus(126)
		}
		return nil
	}
	ws := ee.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return interp.ExitStatus(128 + uint8(ws.Signal()))
	}
	return interp.ExitStatus(uint8(ws.ExitStatus()))
}

// environ lists the exported variables.
func environ(env expand.Environ) (list []string) {
	for name, v := range env.Each {
		if v.Exported && v.Kind == expand.String {
			list = append(list, name+"="+v.String())
		}
	}
	return list
}

// kill is the builtin for process numbers; it must not depend on a process
// that can be started.
func (s *shellRun) kill(hc interp.HandlerContext, args []string) error {
	self := &ctx{name: "kill", args: slices.Clone(args)}
	if sig, err := self.signalOption(); err == nil && slices.Equal(self.args, []string{strconv.Itoa(os.Getpid())}) && s.traps.deliver(sig) {
		return nil
	}
	c := &ctx{name: "kill", args: args, out: bufio.NewWriter(hc.Stdout), err: hc.Stderr}
	if code := c.finish(kill(c)); code != 0 {
		return interp.ExitStatus(code)
	}
	return nil
}

func umask(hc interp.HandlerContext, args []string) error {
	if len(args) == 0 {
		m := unix.Umask(0)
		unix.Umask(m)
		fmt.Fprintf(hc.Stdout, "%04o\n", m)
		return nil
	}
	var m int
	if _, err := fmt.Sscanf(args[0], "%o", &m); err != nil || m < 0 || m > 0o777 {
		fmt.Fprintf(hc.Stderr, "umask: %s: not an octal mode\n", args[0])
		return interp.ExitStatus(2)
	}
	unix.Umask(m)
	return nil
}

// ulimitKinds are the limits that ulimit knows, with the unit it counts in.
var ulimitKinds = map[string]struct {
	which int
	unit  uint64
}{
	"-c": {unix.RLIMIT_CORE, 512}, "-f": {unix.RLIMIT_FSIZE, 512}, "-n": {unix.RLIMIT_NOFILE, 1},
	"-u": {unix.RLIMIT_NPROC, 1}, "-l": {unix.RLIMIT_MEMLOCK, 1024}, "-s": {unix.RLIMIT_STACK, 1024},
	"-v": {unix.RLIMIT_AS, 1024}, "-t": {unix.RLIMIT_CPU, 1},
}

func ulimit(hc interp.HandlerContext, args []string) error {
	kind := "-f"
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		kind, args = args[0], args[1:]
	}
	k, ok := ulimitKinds[kind]
	if !ok {
		fmt.Fprintf(hc.Stderr, "ulimit: %s: unknown limit\n", kind)
		return interp.ExitStatus(2)
	}
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(k.which, &lim); err != nil {
		fmt.Fprintf(hc.Stderr, "ulimit: %v\n", err)
		return interp.ExitStatus(1)
	}
	if len(args) == 0 {
		if lim.Cur == unix.RLIM_INFINITY {
			fmt.Fprintln(hc.Stdout, "unlimited")
		} else {
			fmt.Fprintln(hc.Stdout, lim.Cur/k.unit)
		}
		return nil
	}
	if args[0] == "unlimited" {
		lim = syscall.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	} else {
		var n uint64
		if _, err := fmt.Sscan(args[0], &n); err != nil {
			fmt.Fprintf(hc.Stderr, "ulimit: %s: not a number\n", args[0])
			return interp.ExitStatus(2)
		}
		lim = syscall.Rlimit{Cur: n * k.unit, Max: n * k.unit}
	}
	// Through package syscall, which otherwise gives children the limit of
	// open files from before.
	if err := syscall.Setrlimit(k.which, &lim); err != nil {
		fmt.Fprintf(hc.Stderr, "ulimit: %s: %v\n", kind, err)
		return interp.ExitStatus(1)
	}
	return nil
}

// runArgs runs one command given as words.
func (s *shellRun) runArgs(args []string) int {
	var call syntax.CallExpr
	for _, a := range args {
		call.Args = append(call.Args, &syntax.Word{Parts: []syntax.WordPart{&syntax.SglQuoted{Value: a}}})
	}
	return s.code(s.r.Run(context.Background(), &call))
}
