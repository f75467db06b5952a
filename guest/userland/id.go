package userland

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func pwd(c *ctx) int {
	if !c.getopt("LP", "logical=L", "physical=P") {
		return 1
	}
	d, err := unixGetwd()
	if p := os.Getenv("PWD"); c.has('L') && filepath.IsAbs(p) {
		a, err1 := os.Stat(p)
		b, err2 := os.Stat(".")
		if err1 == nil && err2 == nil && os.SameFile(a, b) {
			d, err = p, nil
		}
	}
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	fmt.Fprintln(c.out, d)
	return 0
}

// unixGetwd returns the physical directory; os.Getwd believes $PWD.
func unixGetwd() (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Getcwd(buf[:])
	if err != nil {
		return "", err
	}
	return string(bytes.TrimRight(buf[:n], "\x00")), nil
}

func nproc(c *ctx) int {
	if !c.getopt("ai:", "all=a", "ignore=i") {
		return 1
	}
	n := runtime.NumCPU()
	if c.has('a') {
		if es, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*"); err == nil && len(es) > 0 {
			n = len(es)
		}
	}
	k, _ := strconv.Atoi(c.opt('i', "0"))
	fmt.Fprintln(c.out, max(1, n-k))
	return 0
}

func id(c *ctx) int {
	if !c.getopt("ugGnr", "user=u", "group=g", "groups=G", "name=n", "real=r") {
		return 1
	}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if c.has('r') {
		uid, gid = uint32(os.Getuid()), uint32(os.Getgid())
	}
	gids, _ := os.Getgroups()
	if len(c.args) > 0 {
		u, err := lookupID("/etc/passwd", c.args[0])
		if err != nil {
			return c.fail(1, "'%s': no such user", c.args[0])
		}
		uid, gid, gids = uint32(u), 0, nil
		b, _ := os.ReadFile("/etc/passwd")
		for l := range strings.Lines(string(b)) {
			if f := strings.Split(l, ":"); len(f) > 3 && f[2] == strconv.Itoa(u) {
				g, _ := strconv.Atoi(f[3])
				gid = uint32(g)
				break
			}
		}
	}
	all := []uint32{gid}
	for _, g := range gids {
		if !slices.Contains(all, uint32(g)) {
			all = append(all, uint32(g))
		}
	}
	show := func(file string, id uint32) string {
		if c.has('n') {
			return nameOf(file, id)
		}
		return strconv.FormatUint(uint64(id), 10)
	}
	switch {
	case c.has('u'):
		fmt.Fprintln(c.out, show("/etc/passwd", uid))
	case c.has('g'):
		fmt.Fprintln(c.out, show("/etc/group", gid))
	case c.has('G'):
		for i, g := range all {
			if i > 0 {
				c.out.WriteByte(' ')
			}
			c.out.WriteString(show("/etc/group", g))
		}
		c.out.WriteByte('\n')
	default:
		named := func(file string, id uint32) string {
			s := strconv.FormatUint(uint64(id), 10)
			if n := nameOf(file, id); n != s {
				s += "(" + n + ")"
			}
			return s
		}
		fmt.Fprintf(c.out, "uid=%s gid=%s groups=", named("/etc/passwd", uid), named("/etc/group", gid))
		for i, g := range all {
			if i > 0 {
				c.out.WriteByte(',')
			}
			c.out.WriteString(named("/etc/group", g))
		}
		c.out.WriteByte('\n')
	}
	return 0
}

func whoami(c *ctx) int {
	fmt.Fprintln(c.out, nameOf("/etc/passwd", uint32(os.Geteuid())))
	return 0
}

func groups(c *ctx) int {
	c.opts = append(c.opts, option{name: 'G'}, option{name: 'n'})
	c.args = append([]string{"-Gn"}, c.args...)
	return id(c)
}

func which(c *ctx) int {
	if !c.getopt("as", "all=a") {
		return 2
	}
	for _, n := range c.args {
		dirs := filepath.SplitList(os.Getenv("PATH"))
		if strings.Contains(n, "/") {
			dirs = []string{""}
		}
		ok := false
		for _, d := range dirs {
			p := n
			if d != "" {
				p = strings.TrimSuffix(d, "/") + "/" + n
			}
			if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && unix.Access(p, unix.X_OK) == nil {
				fmt.Fprintln(c.out, p)
				if ok = true; !c.has('a') {
					break
				}
			}
		}
		if !ok {
			c.failed = true
		}
	}
	return c.code()
}

func tty(c *ctx) int {
	if !c.getopt("s", "silent=s", "quiet=s") {
		return 2
	}
	p, err := os.Readlink("/proc/self/fd/0")
	if _, terr := unix.IoctlGetTermios(0, unix.TCGETS); terr != nil || err != nil {
		if !c.has('s') {
			c.out.WriteString("not a tty\n")
		}
		return 1
	}
	if !c.has('s') {
		fmt.Fprintln(c.out, p)
	}
	return 0
}
