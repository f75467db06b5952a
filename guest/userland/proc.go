package userland

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// builtin runs a command that the shell's interpreter has built in.
func builtin(c *ctx) int {
	s, err := newShell(c.name, nil, nil)
	if err != nil {
		return c.fail(2, "%v", err)
	}
	return s.runArgs(append([]string{c.name}, c.args...))
}

func echo(c *ctx) int { return builtin(c) }

func test(c *ctx) int { return builtin(c) }

func bracket(c *ctx) int { return builtin(c) }

// clearCmd clears the terminal; reset also leaves a character set that binary
// output switched on.
func clearCmd(c *ctx) int {
	if c.name == "reset" {
		c.out.WriteString("\x1bc")
	}
	c.out.WriteString("\x1b[H\x1b[2J\x1b[3J")
	return 0
}

// runCommand runs a program on our streams and returns its exit code as a
// shell would.
func (c *ctx) runCommand(args []string, stdin *os.File) int {
	c.out.Flush()
	path, err := exec.LookPath(args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		c.warn("'%s': %s", args[0], "No such file or directory")
		return 127
	}
	cmd := exec.Cmd{Path: path, Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if stdin != nil {
		cmd.Stdin = stdin
	}
	return c.waitCommand(&cmd)
}

func (c *ctx) waitCommand(cmd *exec.Cmd) int {
	err := cmd.Run()
	var ee *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ee):
		ws := ee.Sys().(syscall.WaitStatus)
		if ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return ws.ExitStatus()
	}
	c.warn("'%s': %s", cmd.Args[0], reason(err))
	return 126
}

// execCommand becomes another program. It returns only when that fails.
func (c *ctx) execCommand(args, env []string) int {
	c.out.Flush()
	path := args[0]
	if !strings.Contains(path, "/") {
		p := os.Getenv("PATH")
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, "PATH="); ok {
				p = v
			}
		}
		path = ""
		for _, d := range filepath.SplitList(p) {
			if d == "" {
				d = "."
			}
			if f := filepath.Join(d, args[0]); unix.Access(f, unix.X_OK) == nil {
				if st, err := os.Stat(f); err == nil && !st.IsDir() {
					path = f
					break
				}
			}
		}
	}
	err := error(unix.ENOENT)
	if path != "" {
		err = syscall.Exec(path, args, env)
	}
	code := 126
	if errors.Is(err, unix.ENOENT) {
		code = 127
	}
	return c.fail(code, "'%s': %s", args[0], reason(err))
}

func envCmd(c *ctx) int {
	if !c.getopt("+i0u:C:", "ignore-environment=i", "unset=u", "null=0", "chdir=C") {
		return 125
	}
	env := os.Environ()
	if len(c.args) > 0 && c.args[0] == "-" {
		c.args = c.args[1:]
		env = nil
	}
	if c.has('i') {
		env = nil
	}
	set := func(k, v string, keep bool) {
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
		switch {
		case i >= 0 && keep:
			env[i] = k + "=" + v
		case i >= 0:
			env = slices.Delete(env, i, i+1)
		case keep:
			env = append(env, k+"="+v)
		}
	}
	for _, o := range c.opts {
		if o.name == 'u' {
			set(o.arg, "", false)
		}
	}
	for len(c.args) > 0 {
		k, v, ok := strings.Cut(c.args[0], "=")
		if !ok {
			break
		}
		set(k, v, true)
		c.args = c.args[1:]
	}
	if c.has('C') {
		if err := os.Chdir(c.opt('C', "")); err != nil {
			return c.fail(125, "cannot change directory to '%s': %s", c.opt('C', ""), reason(err))
		}
	}
	if len(c.args) > 0 {
		return c.execCommand(c.args, env)
	}
	end := "\n"
	if c.has('0') {
		end = "\x00"
	}
	for _, e := range env {
		c.out.WriteString(e + end)
	}
	return 0
}

func printenv(c *ctx) int {
	if !c.getopt("0", "null=0") {
		return 2
	}
	if len(c.args) == 0 {
		c.args = nil
		return envCmd(c)
	}
	for _, n := range c.args {
		v, ok := os.LookupEnv(n)
		if !ok {
			c.failed = true
			continue
		}
		fmt.Fprintln(c.out, v)
	}
	return c.code()
}
