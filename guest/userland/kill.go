package userland

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// signalNumber parses a signal by number or name, with or without SIG.
func signalNumber(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	up := strings.ToUpper(s)
	if up == "EXIT" {
		return 0, nil
	}
	if n := unix.SignalNum("SIG" + strings.TrimPrefix(up, "SIG")); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("%s: invalid signal specification", s)
}

// signalOption takes "-9", "-TERM", "-s TERM" off the arguments of kill.
func (c *ctx) signalOption() (sig syscall.Signal, err error) {
	sig = unix.SIGTERM
	for len(c.args) > 0 && len(c.args[0]) > 1 && c.args[0][0] == '-' {
		a := c.args[0]
		c.args = c.args[1:]
		if a == "--" {
			break
		}
		name := a[1:]
		if a == "-s" || a == "--signal" || a == "-n" {
			if len(c.args) == 0 {
				return 0, fmt.Errorf("option requires an argument -- 's'")
			}
			name, c.args = c.args[0], c.args[1:]
		} else if n, ok := strings.CutPrefix(a, "--signal="); ok {
			name = n
		} else if n, ok := strings.CutPrefix(a, "-s"); ok && n != "" {
			if v, verr := signalNumber(n); verr == nil {
				return v, nil
			}
		}
		if sig, err = signalNumber(name); err != nil {
			return 0, err
		}
	}
	return sig, nil
}

func kill(c *ctx) int {
	if len(c.args) > 0 && (c.args[0] == "-l" || c.args[0] == "-L") {
		if len(c.args) > 1 {
			for _, a := range c.args[1:] {
				n, err := signalNumber(a)
				if err != nil && len(a) > 2 {
					return c.fail(1, "%v", err)
				}
				if k, aerr := strconv.Atoi(a); aerr == nil {
					if k > 128 {
						k -= 128
					}
					fmt.Fprintln(c.out, strings.TrimPrefix(unix.SignalName(syscall.Signal(k)), "SIG"))
				} else {
					fmt.Fprintln(c.out, int(n))
				}
			}
			return 0
		}
		var names []string
		for n := 1; n < 32; n++ {
			names = append(names, strings.TrimPrefix(unix.SignalName(syscall.Signal(n)), "SIG"))
		}
		fmt.Fprintln(c.out, strings.Join(names, " "))
		return 0
	}
	sig, err := c.signalOption()
	if err != nil {
		return c.fail(1, "%v", err)
	}
	if len(c.args) == 0 {
		return c.usage("[-s signal | -signal] pid...")
	}
	for _, a := range c.args {
		pid, err := strconv.Atoi(a)
		if err != nil {
			c.warn("failed to parse argument: '%s'", a)
			continue
		}
		if err := syscall.Kill(pid, sig); err != nil {
			c.warn("(%d) - %s", pid, reason(err))
		}
	}
	return c.code()
}
