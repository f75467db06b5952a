package userland

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/agent"
)

func lsmod(c *ctx) int {
	b, err := os.ReadFile("/proc/modules")
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	fmt.Fprintf(c.out, "%-22s %8s  %s\n", "Module", "Size", "Used by")
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 3 {
			by := strings.TrimSuffix(f[3], ",")
			if by == "-" {
				by = ""
			}
			fmt.Fprintln(c.out, strings.TrimRight(fmt.Sprintf("%-22s %8s  %s %s", f[0], f[1], f[2], by), " "))
		}
	}
	return 0
}

func insmod(c *ctx) int {
	if !c.getopt("+f", "force=f") || len(c.args) == 0 {
		return c.usage("file [option=value...]")
	}
	if err := agent.LoadModule(c.args[0], strings.Join(c.args[1:], " ")); err != nil {
		return c.fail(1, "%v", err)
	}
	return 0
}

func rmmod(c *ctx) int {
	if !c.getopt("fsvw", "force=f") {
		return 1
	}
	if len(c.args) == 0 {
		return c.usage("module...")
	}
	flags := unix.O_NONBLOCK
	if c.has('f') {
		flags |= unix.O_TRUNC
	}
	for _, m := range c.args {
		if err := unix.DeleteModule(moduleName(m), flags); err != nil {
			c.warn("%s: %s", m, reason(err))
		}
	}
	return c.code()
}

// moduleName returns the name under which the kernel knows a module file.
func moduleName(path string) string {
	n := filepath.Base(path)
	for _, s := range []string{".xz", ".gz", ".zst"} {
		n = strings.TrimSuffix(n, s)
	}
	return strings.ReplaceAll(strings.TrimSuffix(n, ".ko"), "-", "_")
}

// modprobe loads a module and what it depends on, by modules.dep where the
// image has one, else from the files that the image has. A module that is
// built into the kernel or loaded already is fine.
func modprobe(c *ctx) int {
	if !c.getopt("+rqavfn", "remove=r", "quiet=q", "all=a", "verbose=v", "dry-run=n", "show-depends=n") {
		return 1
	}
	if len(c.args) == 0 {
		return c.usage("[-rq] module [option=value...]")
	}
	if c.has('r') {
		c.opts = nil
		return rmmod(c)
	}
	var u unix.Utsname
	unix.Uname(&u)
	dirs := []string{"/lib/modules/" + unix.ByteSliceToString(u.Release[:]), "/usr/lib/modules/" + unix.ByteSliceToString(u.Release[:])}
	names, opts := c.args[:1], strings.Join(c.args[1:], " ")
	if c.has('a') {
		names, opts = c.args, ""
	}
	for _, n := range names {
		if err := c.probe(dirs, moduleName(n), opts); err != nil && !c.has('q') {
			c.warn("%v", err)
		} else if err != nil {
			c.failed = true
		}
	}
	return c.code()
}

func (c *ctx) probe(dirs []string, name, opts string) error {
	if _, err := os.Stat("/sys/module/" + name); err == nil {
		if _, err := os.Stat("/sys/module/" + name + "/initstate"); err == nil {
			return nil // loaded
		}
	}
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "modules.dep"))
		for l := range strings.Lines(string(b)) {
			file, deps, _ := strings.Cut(strings.TrimSpace(l), ":")
			if err != nil || moduleName(file) != name {
				continue
			}
			list := strings.Fields(deps)
			slices.Reverse(list) // the deepest is last
			for _, m := range append(list, file) {
				o := ""
				if m == file {
					o = opts
				}
				if c.has('v') || c.has('n') {
					fmt.Fprintf(c.out, "insmod %s %s\n", filepath.Join(d, m), o)
				}
				if c.has('n') {
					continue
				}
				if err := agent.LoadModule(filepath.Join(d, m), o); err != nil {
					return err
				}
			}
			return nil
		}
		if b, err := os.ReadFile(filepath.Join(d, "modules.builtin")); err == nil {
			for l := range strings.Lines(string(b)) {
				if moduleName(strings.TrimSpace(l)) == name {
					return nil
				}
			}
		}
	}
	var file string
	for _, root := range append(dirs, "/lib/modules") {
		filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.Contains(p, ".ko") && moduleName(p) == name && file == "" {
				file = p
			}
			return nil
		})
	}
	if file == "" {
		return fmt.Errorf("FATAL: Module %s not found in the image", name)
	}
	if c.has('n') {
		fmt.Fprintf(c.out, "insmod %s %s\n", file, opts)
		return nil
	}
	return agent.LoadModule(file, opts)
}
