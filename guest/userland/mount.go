package userland

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/agent"
)

func mountCmd(c *ctx) int {
	if !c.getopt("t:o:rwvnal", "types=t", "options=o", "read-only=r", "rw=w", "bind=B", "rbind=C", "make-rprivate=D", "move=M") {
		return 1
	}
	if len(c.args) == 0 && !c.has('a') {
		b, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return c.fail(1, "%s", reason(err))
		}
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) >= 4 && (!c.has('t') || slices.Contains(strings.Split(c.opt('t', ""), ","), f[2])) {
				fmt.Fprintf(c.out, "%s on %s type %s (%s)\n", unescapeMount(f[0]), unescapeMount(f[1]), f[2], f[3])
			}
		}
		return 0
	}
	var opts []string
	for _, o := range c.opts {
		if o.name == 'o' {
			opts = append(opts, o.arg)
		}
	}
	for letter, o := range map[byte]string{'r': "ro", 'B': "bind", 'C': "rbind", 'M': "move", 'D': "rprivate"} {
		if c.has(letter) {
			opts = append(opts, o)
		}
	}
	flags, data := agent.ParseMountOptions(strings.Join(opts, ","))
	var src, dst string
	switch {
	case len(c.args) == 2:
		src, dst = c.args[0], c.args[1]
	case len(c.args) == 1 && (flags&unix.MS_REMOUNT != 0 || c.has('D') || flags&(unix.MS_PRIVATE|unix.MS_SHARED|unix.MS_SLAVE) != 0):
		src, dst = "none", c.args[0]
	default:
		return c.usage("[-t type] [-o options] source directory")
	}
	if data == "loop" || strings.Contains(","+data+",", ",loop,") {
		return c.fail(1, "loop devices are not supported: give the block device")
	}
	err := mountTyped(src, dst, c.opt('t', ""), flags, data)
	if err == nil && flags&unix.MS_BIND != 0 && flags&^(unix.MS_BIND|unix.MS_REC) != 0 && flags&unix.MS_REMOUNT == 0 {
		err = unix.Mount("none", dst, "", flags|unix.MS_REMOUNT, data)
	}
	if err != nil {
		return c.fail(32, "mounting %s on %s failed: %s", src, dst, reason(err))
	}
	return 0
}

// mountTyped mounts with the given type or, without one, with each that the
// kernel has for block devices.
func mountTyped(src, dst, typ string, flags uintptr, data string) error {
	if typ != "" && typ != "auto" || flags&(unix.MS_BIND|unix.MS_MOVE|unix.MS_REMOUNT|unix.MS_PRIVATE|unix.MS_SHARED|unix.MS_SLAVE|unix.MS_UNBINDABLE) != 0 {
		return unix.Mount(src, dst, typ, flags, data)
	}
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	err = unix.ENODEV
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "nodev") {
			continue
		}
		merr := unix.Mount(src, dst, strings.TrimSpace(l), flags, data)
		if merr == unix.EACCES && flags&unix.MS_RDONLY == 0 {
			merr = unix.Mount(src, dst, strings.TrimSpace(l), flags|unix.MS_RDONLY, data)
		}
		if merr == nil {
			return nil
		}
		if merr != unix.EINVAL || err == unix.ENODEV {
			err = merr
		}
	}
	return err
}

// unescapeMount undoes the octal escapes of /proc/mounts.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func umount(c *ctx) int {
	if !c.getopt("aflnrRt:dv", "lazy=l", "force=f", "all=a", "recursive=R", "read-only=r", "types=t") {
		return 1
	}
	flags := 0
	if c.has('l') {
		flags |= unix.MNT_DETACH
	}
	if c.has('f') {
		flags |= unix.MNT_FORCE
	}
	targets := c.args
	mounts := func() (ms [][]string) {
		b, _ := os.ReadFile("/proc/self/mounts")
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 2 {
				ms = append(ms, []string{unescapeMount(f[0]), unescapeMount(f[1]), f[2]})
			}
		}
		slices.Reverse(ms)
		return ms
	}
	if c.has('a') {
		targets = nil
		for _, m := range mounts() {
			if m[1] != "/" && m[1] != "/proc" && m[1] != "/sys" && m[1] != "/dev" && (!c.has('t') || m[2] == c.opt('t', "")) {
				targets = append(targets, m[1])
			}
		}
	} else if len(targets) == 0 {
		return c.usage("[-lf] directory...")
	}
	if c.has('R') {
		var all []string
		for _, t := range targets {
			for _, m := range mounts() {
				if m[1] == t || strings.HasPrefix(m[1], strings.TrimSuffix(t, "/")+"/") {
					all = append(all, m[1])
				}
			}
		}
		targets = all
	}
	for _, t := range targets {
		err := unix.Unmount(t, flags)
		if err == unix.EINVAL {
			// A device: where is it mounted?
			for _, m := range mounts() {
				if m[0] == t {
					err = unix.Unmount(m[1], flags)
					break
				}
			}
		}
		if err != nil {
			what := reason(err)
			switch err {
			case unix.EINVAL:
				what = "not mounted"
			case unix.EBUSY:
				what = "target is busy"
			}
			c.warn("%s: %s", t, what)
		}
	}
	if c.failed {
		return 32
	}
	return 0
}

func mountpoint(c *ctx) int {
	if !c.getopt("qdn", "quiet=q") || len(c.args) != 1 {
		return c.usage("[-q] directory")
	}
	p := c.args[0]
	say := func(s string) {
		if !c.has('q') {
			fmt.Fprintf(c.out, "%s %s\n", p, s)
		}
	}
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		if !c.has('q') {
			c.warn("%s: %s", p, reason(err))
		}
		return 1
	}
	abs, _ := filepath.Abs(real)
	b, _ := os.ReadFile("/proc/self/mounts")
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 1 && unescapeMount(f[1]) == abs {
			say("is a mountpoint")
			return 0
		}
	}
	say("is not a mountpoint")
	return 32
}

func df(c *ctx) int {
	if !c.getopt("ahikPTmt:", "all=a", "human-readable=h", "inodes=i", "portability=P", "print-type=T", "type=t") {
		return 1
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return c.fail(1, "%s", reason(err))
	}
	type row struct{ dev, typ, dir string }
	var rows []row
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 2 {
			rows = append(rows, row{unescapeMount(f[0]), f[2], unescapeMount(f[1])})
		}
	}
	if len(c.args) > 0 {
		var chosen []row
		for _, a := range c.args {
			real, err := filepath.EvalSymlinks(a)
			if err != nil {
				c.warn("%s: %s", a, reason(err))
				continue
			}
			abs, _ := filepath.Abs(real)
			best := row{"-", "-", "-"}
			for _, r := range rows {
				if r.dev == abs || r.dir == "/" || abs == r.dir || strings.HasPrefix(abs, r.dir+"/") {
					if len(r.dir) >= len(best.dir) {
						best = r
					}
				}
			}
			chosen = append(chosen, best)
		}
		rows = chosen
	}
	head := []string{"Filesystem", "1K-blocks", "Used", "Available", "Use%", "Mounted on"}
	switch {
	case c.has('i'):
		head = []string{"Filesystem", "Inodes", "IUsed", "IFree", "IUse%", "Mounted on"}
	case c.has('h'):
		head[1], head[3] = "Size", "Avail"
	case c.has('P'):
		head[1], head[4] = "1024-blocks", "Capacity"
	case c.has('m'):
		head[1] = "1M-blocks"
	}
	if c.has('T') {
		head = slices.Insert(head, 1, "Type")
	}
	head[0] = fmt.Sprintf("%-14s", head[0]) // as wide as df has it
	table := [][]string{head}
	seen := map[string]bool{}
	for _, r := range rows {
		var st unix.Statfs_t
		if err := unix.Statfs(r.dir, &st); err != nil {
			if len(c.args) > 0 {
				c.warn("%s: %s", r.dir, reason(err))
			}
			continue
		}
		if len(c.args) == 0 && !c.has('a') && (st.Blocks == 0 || seen[r.dir]) || c.has('t') && r.typ != c.opt('t', "") {
			continue
		}
		seen[r.dir] = true
		bs := uint64(st.Frsize)
		total, free, avail := st.Blocks*bs, st.Bfree*bs, st.Bavail*bs
		if c.has('i') {
			total, free, avail = st.Files, st.Ffree, st.Ffree
		}
		used := total - free
		pct := "-"
		if used+avail > 0 {
			pct = fmt.Sprintf("%d%%", (used*100+used+avail-1)/(used+avail))
		}
		show := func(n uint64) string {
			switch {
			case c.has('i'):
				return strconv.FormatUint(n, 10)
			case c.has('h'):
				return human(n)
			case c.has('m'):
				return strconv.FormatUint((n+1<<20-1)>>20, 10)
			}
			return strconv.FormatUint((n+1023)/1024, 10)
		}
		t := []string{r.dev, show(total), show(used), show(avail), pct, r.dir}
		if c.has('T') {
			t = slices.Insert(t, 1, r.typ)
		}
		table = append(table, t)
	}
	left := 1
	if c.has('T') {
		left = 2
	}
	c.table(table, left)
	return c.code()
}

// table prints rows in columns, the first left ones and the last to the left,
// the others to the right.
func (c *ctx) table(rows [][]string, left int) {
	var width []int
	for _, r := range rows {
		for i, s := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len(s))
		}
	}
	for _, r := range rows {
		for i, s := range r {
			switch {
			case i == len(r)-1:
				c.out.WriteString(s)
			case i < left:
				fmt.Fprintf(c.out, "%-*s ", width[i], s)
			default:
				fmt.Fprintf(c.out, "%*s ", width[i], s)
			}
		}
		c.out.WriteByte('\n')
	}
}
