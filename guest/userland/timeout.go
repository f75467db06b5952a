package userland

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func sleep(c *ctx) int {
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	var total time.Duration
	for _, a := range c.args {
		d, err := duration(a)
		if err != nil {
			return c.fail(1, "invalid time interval '%s'", a)
		}
		if c.name == "usleep" {
			d /= 1000000
		}
		total += d
	}
	time.Sleep(total)
	return 0
}

// duration parses a number of seconds, or of what its suffix says.
func duration(s string) (time.Duration, error) {
	unit := time.Second
	if s != "" {
		if u, ok := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}[s[len(s)-1]]; ok {
			unit, s = u, s[:len(s)-1]
		}
	}
	if s == "infinity" || s == "inf" {
		return 1<<63 - 1, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || f != f {
		return 0, fmt.Errorf("invalid time interval '%s'", s)
	}
	if d := f * float64(unit); d < 1<<63-1 {
		return time.Duration(d), nil
	}
	return 1<<63 - 1, nil
}

func timeout(c *ctx) int {
	if !c.getopt("+s:k:fv", "signal=s", "kill-after=k", "foreground=f", "preserve-status=p", "verbose=v") {
		return 125
	}
	if len(c.args) < 2 {
		return c.fail(125, "missing operand")
	}
	limit, err := duration(c.args[0])
	if err != nil {
		return c.fail(125, "%v", err)
	}
	sig := syscall.Signal(unix.SIGTERM)
	if c.has('s') {
		if sig, err = signalNumber(c.opt('s', "")); err != nil {
			return c.fail(125, "%v", err)
		}
	}
	path, err := exec.LookPath(c.args[1])
	if err != nil {
		return c.fail(127, "failed to run command '%s': No such file or directory", c.args[1])
	}
	cmd := exec.Cmd{Path: path, Args: c.args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: !c.has('f')}}
	if err := cmd.Start(); err != nil {
		return c.fail(126, "failed to run command '%s': %s", c.args[1], reason(err))
	}
	send := func(s syscall.Signal) {
		cmd.Process.Signal(s)
		if !c.has('f') {
			syscall.Kill(-cmd.Process.Pid, s)
			syscall.Kill(-cmd.Process.Pid, unix.SIGCONT)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	var t <-chan time.Time
	if limit > 0 {
		t = time.After(limit)
	}
	timedOut := false
	for {
		select {
		case err := <-ended:
			var ee *exec.ExitError
			code := 0
			if errors.As(err, &ee) {
				ws := ee.Sys().(syscall.WaitStatus)
				if code = ws.ExitStatus(); ws.Signaled() {
					code = 128 + int(ws.Signal())
				}
			}
			if timedOut && !c.has('p') && code != 128+int(unix.SIGKILL) {
				return 124
			}
			return code
		case <-t:
			if timedOut {
				send(unix.SIGKILL)
				t = nil
				continue
			}
			timedOut = true
			send(sig)
			t = nil
			if c.has('k') {
				d, err := duration(c.opt('k', ""))
				if err == nil {
					t = time.After(d)
				}
			}
		case s := <-sigs:
			send(s.(syscall.Signal))
		}
	}
}

func timeCmd(c *ctx) int {
	if !c.getopt("+p", "portability=p") {
		return 125
	}
	if len(c.args) == 0 {
		return 0
	}
	start := time.Now()
	code := c.runCommand(c.args, nil)
	real := time.Since(start)
	var ru unix.Rusage
	unix.Getrusage(unix.RUSAGE_CHILDREN, &ru)
	fmt.Fprintf(c.err, "real %.2f\nuser %.2f\nsys %.2f\n", real.Seconds(),
		time.Duration(ru.Utime.Nano()).Seconds(), time.Duration(ru.Stime.Nano()).Seconds())
	return code
}

func nohup(c *ctx) int {
	if len(c.args) == 0 {
		return c.fail(125, "missing operand")
	}
	signal.Ignore(unix.SIGHUP)
	return c.execCommand(c.args, os.Environ())
}

func setsid(c *ctx) int {
	if !c.getopt("+cfw", "ctty=c", "fork=f", "wait=w") {
		return 1
	}
	if len(c.args) == 0 {
		return c.usage("[-c] command...")
	}
	path, err := exec.LookPath(c.args[0])
	if err != nil {
		return c.fail(127, "failed to execute %s: No such file or directory", c.args[0])
	}
	cmd := exec.Cmd{Path: path, Args: c.args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: c.has('c')}}
	if c.has('f') && !c.has('w') {
		if err := cmd.Start(); err != nil {
			return c.fail(126, "failed to execute %s: %s", c.args[0], reason(err))
		}
		return 0
	}
	return c.waitCommand(&cmd)
}

func chrootCmd(c *ctx) int {
	if !c.getopt("+") {
		return 125
	}
	if len(c.args) == 0 {
		return c.usage("newroot [command...]")
	}
	if err := unix.Chroot(c.args[0]); err != nil {
		return c.fail(125, "cannot change root directory to '%s': %s", c.args[0], reason(err))
	}
	if err := os.Chdir("/"); err != nil {
		return c.fail(125, "cannot chdir to root directory: %s", reason(err))
	}
	args := c.args[1:]
	if len(args) == 0 {
		args = []string{"/bin/sh", "-i"}
	}
	return c.execCommand(args, os.Environ())
}
