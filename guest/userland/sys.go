package userland

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/agent"
)

func uname(c *ctx) int {
	if !c.getopt("asnrvmpio", "all=a", "kernel-name=s", "nodename=n", "kernel-release=r", "kernel-version=v", "machine=m",
		"processor=p", "hardware-platform=i", "operating-system=o") {
		return 1
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return c.fail(1, "%s", reason(err))
	}
	s := unix.ByteSliceToString
	var out []string
	for _, f := range []struct {
		opt byte
		v   string
	}{{'s', s(u.Sysname[:])}, {'n', s(u.Nodename[:])}, {'r', s(u.Release[:])}, {'v', s(u.Version[:])}, {'m', s(u.Machine[:])}, {'p', "unknown"}, {'i', "unknown"}, {'o', "GNU/Linux"}} {
		// -a leaves out what is unknown.
		if c.has(f.opt) || c.has('a') && f.v != "unknown" || len(c.opts) == 0 && f.opt == 's' {
			out = append(out, f.v)
		}
	}
	fmt.Fprintln(c.out, strings.Join(out, " "))
	return 0
}

func hostname(c *ctx) int {
	if !c.getopt("fsid", "fqdn=f", "short=s") {
		return 1
	}
	if len(c.args) > 0 {
		if err := unix.Sethostname([]byte(c.args[0])); err != nil {
			return c.fail(1, "sethostname: %s", reason(err))
		}
		return 0
	}
	h, err := os.Hostname()
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	if c.has('s') {
		h, _, _ = strings.Cut(h, ".")
	}
	fmt.Fprintln(c.out, h)
	return 0
}

func syncCmd(c *ctx) int {
	if !c.getopt("df", "data=d", "file-system=f") {
		return 1
	}
	if len(c.args) == 0 {
		unix.Sync()
		return 0
	}
	for _, p := range c.args {
		f, err := os.Open(p)
		if err != nil {
			c.warn("error opening '%s': %s", p, reason(err))
			continue
		}
		switch {
		case c.has('f'):
			err = unix.Syncfs(int(f.Fd()))
		case c.has('d'):
			err = unix.Fdatasync(int(f.Fd()))
		default:
			err = f.Sync()
		}
		if err != nil {
			c.warn("error syncing '%s': %s", p, reason(err))
		}
		f.Close()
	}
	return c.code()
}

// shutdownCmd is poweroff, reboot, halt and shutdown.
func shutdownCmd(c *ctx) int {
	kind := c.name
	force := false
	if kind == "shutdown" {
		kind = "poweroff"
		for _, a := range c.args {
			switch a {
			case "-r", "--reboot":
				kind = "reboot"
			case "-H", "--halt":
				kind = "halt"
			case "-h", "-P", "--poweroff", "now", "+0", "0", "-t", "-y", "-f":
			case "-c":
				return c.fail(1, "no shutdown is scheduled: here it is always at once")
			default:
				if strings.HasPrefix(a, "-") || strings.HasPrefix(a, "+") || strings.Contains(a, ":") {
					return c.fail(1, "'%s': only \"now\" is supported", a)
				}
			}
		}
	} else {
		if !c.getopt("fnpwdihk", "force=f", "poweroff=p", "no-sync=n") {
			return 1
		}
		if force = c.has('f'); c.has('p') {
			kind = "poweroff"
		}
	}
	if err := agent.Shutdown(kind, force); err != nil {
		return c.fail(1, "%s", reason(err))
	}
	return 0
}

func sysctl(c *ctx) int {
	if !c.getopt("nqwae", "values=n", "quiet=q", "write=w", "all=a", "ignore=e") {
		return 1
	}
	const root = "/proc/sys/"
	file := func(k string) string { return root + strings.ReplaceAll(k, ".", "/") }
	show := func(k string) {
		b, err := os.ReadFile(file(k))
		if err != nil {
			if !c.has('e') && !c.has('a') {
				c.warn("cannot stat %s: %s", file(k), reason(err))
			}
			return
		}
		for l := range strings.Lines(string(b)) {
			if l = strings.TrimSuffix(l, "\n"); c.has('n') {
				fmt.Fprintln(c.out, l)
			} else {
				fmt.Fprintf(c.out, "%s = %s\n", k, l)
			}
		}
	}
	if c.has('a') {
		filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				show(strings.ReplaceAll(strings.TrimPrefix(p, root), "/", "."))
			}
			return nil
		})
		return 0
	}
	for _, a := range c.args {
		k, v, set := strings.Cut(a, "=")
		k = strings.TrimSpace(k)
		if !set {
			show(k)
			continue
		}
		if err := os.WriteFile(file(k), []byte(strings.TrimSpace(v)), 0); err != nil {
			c.warn("setting key \"%s\": %s", k, reason(err))
		} else if !c.has('q') {
			fmt.Fprintf(c.out, "%s = %s\n", k, strings.TrimSpace(v))
		}
	}
	return c.code()
}
