package userland

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func du(c *ctx) int {
	if !c.getopt("abchkmsd:x", "all=a", "bytes=b", "total=c", "human-readable=h", "summarize=s", "max-depth=d") {
		return 1
	}
	if len(c.args) == 0 {
		c.args = []string{"."}
	}
	depth := 1 << 30
	if c.has('s') {
		depth = 0
	} else if c.has('d') {
		var err error
		if depth, err = strconv.Atoi(c.opt('d', "")); err != nil {
			return c.fail(1, "invalid maximum depth '%s'", c.opt('d', ""))
		}
	}
	seen := map[[2]uint64]bool{}
	var total int64
	show := func(n int64, p string) {
		switch {
		case c.has('h'):
			fmt.Fprintf(c.out, "%s\t%s\n", human(uint64(n)), p)
		case c.has('b'):
			fmt.Fprintf(c.out, "%d\t%s\n", n, p)
		case c.has('m'):
			fmt.Fprintf(c.out, "%d\t%s\n", (n+1<<20-1)>>20, p)
		default:
			fmt.Fprintf(c.out, "%d\t%s\n", (n+1023)/1024, p)
		}
	}
	var visit func(p string, level int) int64
	visit = func(p string, level int) int64 {
		var st statT
		if err := syscall.Lstat(p, &st); err != nil {
			c.warn("cannot access '%s': %s", p, reason(err))
			return 0
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if id := [2]uint64{uint64(st.Dev), st.Ino}; !isDir && st.Nlink > 1 {
			if seen[id] {
				return 0
			}
			seen[id] = true
		}
		n := st.Blocks * 512
		if c.has('b') {
			n = st.Size
		}
		if isDir {
			es, err := readDir(p)
			if err != nil {
				c.warn("cannot read directory '%s': %s", p, reason(err))
			}
			for _, e := range es {
				n += visit(strings.TrimSuffix(p, "/")+"/"+e.Name(), level+1)
			}
		}
		if level == 0 || level <= depth && (isDir || c.has('a')) {
			show(n, p)
		}
		return n
	}
	for _, p := range c.args {
		total += visit(p, 0)
	}
	if c.has('c') {
		show(total, "total")
	}
	return c.code()
}
