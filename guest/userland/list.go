package userland

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// statT is what fs.FileInfo.Sys holds.
type statT = syscall.Stat_t

// modeString returns a mode as ls -l shows it.
func modeString(m uint32) string {
	kinds := map[uint32]byte{
		unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c', unix.S_IFBLK: 'b', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's',
	}
	b := []byte("?rwxrwxrwx")
	if k, ok := kinds[m&unix.S_IFMT]; ok {
		b[0] = k
	}
	for i := range 9 {
		if m&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit uint32
		at  int
		ch  byte
	}{{unix.S_ISUID, 3, 's'}, {unix.S_ISGID, 6, 's'}, {unix.S_ISVTX, 9, 't'}} {
		if m&s.bit != 0 {
			if b[s.at] == '-' {
				b[s.at] = s.ch - 32
			} else {
				b[s.at] = s.ch
			}
		}
	}
	return string(b)
}

// human returns a size as ls -h and df -h show it: one decimal below 10,
// rounded up.
func human(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10)
	}
	units := "KMGTPE"
	div, u := uint64(1024), 0
	for n/div >= 1024 && u < len(units)-1 {
		div *= 1024
		u++
	}
	if tenths := (n*10 + div - 1) / div; tenths < 100 {
		return fmt.Sprintf("%d.%d%c", tenths/10, tenths%10, units[u])
	}
	whole := (n + div - 1) / div
	if whole == 1024 && u < len(units)-1 {
		return fmt.Sprintf("1.0%c", units[u+1])
	}
	return fmt.Sprintf("%d%c", whole, units[u])
}

// A entry is one file that ls lists.
type entry struct {
	name string // as shown
	path string
	st   statT
	err  error
}

func ls(c *ctx) int {
	// Aliases ask for colours; there are none, and never asking is right too.
	c.args = slices.DeleteFunc(slices.Clone(c.args), func(a string) bool { return a == "--color" || strings.HasPrefix(a, "--color=") })
	if !c.getopt("1aAcCdfFgGhHiklLmnopQrRsStuUxX", "all=a", "almost-all=A", "directory=d", "human-readable=h", "inode=i",
		"recursive=R", "reverse=r", "numeric-uid-gid=n", "dereference=L", "classify=F", "full-time=T", "no-group=G", "size=s") {
		return 2
	}
	if c.has('T') {
		c.opts = append(c.opts, option{name: 'l'})
	}
	names := c.args
	if len(names) == 0 {
		names = []string{"."}
	}
	l := lister{c: c, users: map[uint32]string{}, groups: map[uint32]string{}}
	l.long = c.has('l') || c.has('n') || c.has('g') || c.has('o')
	var files, dirs []entry
	for _, n := range names {
		e := l.stat(n, n, !l.long && !c.has('d') && !c.has('F') || c.has('H') || c.has('L'))
		if e.err != nil {
			c.warn("cannot access '%s': %s", n, reason(e.err))
			c.failed = true
			continue
		}
		isDir := e.st.Mode&unix.S_IFMT == unix.S_IFDIR
		if isDir && !c.has('d') {
			dirs = append(dirs, e)
		} else {
			files = append(files, e)
		}
	}
	l.sort(files)
	l.sort(dirs)
	l.print(files, false)
	for i, d := range dirs {
		if len(names) > 1 || c.has('R') {
			if i > 0 || len(files) > 0 {
				c.out.WriteByte('\n')
			}
			fmt.Fprintf(c.out, "%s:\n", d.name)
		}
		l.dir(d.path)
	}
	if c.failed {
		return 2
	}
	return 0
}

type lister struct {
	c             *ctx
	long          bool
	users, groups map[uint32]string
}

func (l *lister) stat(name, path string, follow bool) entry {
	e := entry{name: name, path: path}
	if follow {
		if e.err = syscall.Stat(path, &e.st); e.err == nil {
			return e
		}
	}
	e.err = syscall.Lstat(path, &e.st)
	return e
}

func (l *lister) dir(path string) {
	c := l.c
	es, err := os.ReadDir(path)
	if err != nil {
		c.warn("cannot open directory '%s': %s", path, reason(err))
		return
	}
	var list []entry
	if c.has('a') || c.has('f') {
		list = append(list, l.stat(".", path, true), l.stat("..", filepath.Join(path, ".."), true))
	}
	for _, d := range es {
		n := d.Name()
		if strings.HasPrefix(n, ".") && !c.has('a') && !c.has('A') && !c.has('f') {
			continue
		}
		e := l.stat(n, strings.TrimSuffix(path, "/")+"/"+n, c.has('L'))
		if e.err != nil {
			c.warn("cannot access '%s': %s", e.path, reason(e.err))
			continue
		}
		list = append(list, e)
	}
	l.sort(list)
	l.print(list, true)
	if !c.has('R') {
		return
	}
	for _, e := range list {
		if e.st.Mode&unix.S_IFMT == unix.S_IFDIR && e.name != "." && e.name != ".." {
			fmt.Fprintf(c.out, "\n%s:\n", e.path)
			l.dir(e.path)
		}
	}
}

func (l *lister) sort(es []entry) {
	c := l.c
	if c.has('U') || c.has('f') {
		return
	}
	t := func(e entry) time.Time {
		switch {
		case c.has('u'):
			return time.Unix(e.st.Atim.Sec, e.st.Atim.Nsec)
		case c.has('c'):
			return time.Unix(e.st.Ctim.Sec, e.st.Ctim.Nsec)
		}
		return time.Unix(e.st.Mtim.Sec, e.st.Mtim.Nsec)
	}
	slices.SortFunc(es, func(a, b entry) int {
		d := 0
		switch {
		case c.has('S'):
			d = int(min(max(b.st.Size-a.st.Size, -1), 1))
		case c.has('t'):
			d = t(b).Compare(t(a))
		case c.has('X'):
			d = strings.Compare(filepath.Ext(a.name), filepath.Ext(b.name))
		}
		if d == 0 {
			d = strings.Compare(a.name, b.name)
		}
		if c.has('r') {
			d = -d
		}
		return d
	})
}

func (l *lister) print(es []entry, isDir bool) {
	c := l.c
	if len(es) == 0 && !(isDir && l.long) {
		return
	}
	var cols [][]string
	var blocks int64
	for _, e := range es {
		blocks += e.st.Blocks
		var row []string
		if c.has('i') {
			row = append(row, strconv.FormatUint(e.st.Ino, 10))
		}
		if c.has('s') {
			row = append(row, strconv.FormatInt(e.st.Blocks/2, 10))
		}
		if l.long {
			row = append(row, l.longRow(e)...)
		}
		cols = append(cols, row)
	}
	if isDir && (l.long || c.has('s')) {
		if c.has('h') {
			fmt.Fprintf(c.out, "total %s\n", human(uint64(blocks)*512))
		} else {
			fmt.Fprintf(c.out, "total %d\n", blocks/2)
		}
	}
	var width []int
	for _, r := range cols {
		for i, s := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len(s))
		}
	}
	var cells []string
	for i, e := range es {
		var b strings.Builder
		for j, s := range cols[i] {
			// Owner and group are to the left, numbers to the right.
			if l.long && l.leftColumn(j) {
				fmt.Fprintf(&b, "%-*s ", width[j], s)
			} else {
				fmt.Fprintf(&b, "%*s ", width[j], s)
			}
		}
		b.WriteString(l.shown(e))
		cells = append(cells, b.String())
	}
	if !l.long && !c.has('1') && (c.has('C') || c.has('x') || term.IsTerminal(1)) {
		l.columns(cells)
		return
	}
	sep := "\n"
	if c.has('m') && !l.long {
		sep = ", "
	}
	c.out.WriteString(strings.Join(cells, sep) + "\n")
}

// leftColumn reports whether column j of a long listing is owner or group.
func (l *lister) leftColumn(j int) bool {
	if l.c.has('i') {
		j--
	}
	if l.c.has('s') {
		j--
	}
	n := 2
	if !l.c.has('g') {
		n++
	}
	if !l.c.has('o') && !l.c.has('G') {
		n++
	}
	return j >= 2 && j < n
}

func (l *lister) longRow(e entry) []string {
	c := l.c
	row := []string{modeString(e.st.Mode), strconv.FormatUint(uint64(e.st.Nlink), 10)}
	name := func(cache map[uint32]string, file string, id uint32) string {
		if c.has('n') {
			return strconv.FormatUint(uint64(id), 10)
		}
		if _, ok := cache[id]; !ok {
			cache[id] = nameOf(file, id)
		}
		return cache[id]
	}
	if !c.has('g') {
		row = append(row, name(l.users, "/etc/passwd", e.st.Uid))
	}
	if !c.has('o') && !c.has('G') {
		row = append(row, name(l.groups, "/etc/group", e.st.Gid))
	}
	switch k := e.st.Mode & unix.S_IFMT; {
	case k == unix.S_IFCHR || k == unix.S_IFBLK:
		row = append(row, fmt.Sprintf("%d, %d", unix.Major(e.st.Rdev), unix.Minor(e.st.Rdev)))
	case c.has('h'):
		row = append(row, human(uint64(e.st.Size)))
	default:
		row = append(row, strconv.FormatInt(e.st.Size, 10))
	}
	t := time.Unix(e.st.Mtim.Sec, e.st.Mtim.Nsec)
	switch {
	case c.has('u'):
		t = time.Unix(e.st.Atim.Sec, e.st.Atim.Nsec)
	case c.has('c'):
		t = time.Unix(e.st.Ctim.Sec, e.st.Ctim.Nsec)
	}
	layout := "Jan _2 15:04"
	if age := time.Since(t); age > 182*24*time.Hour || age < -time.Hour {
		layout = "Jan _2  2006"
	}
	if c.has('T') {
		layout = "2006-01-02 15:04:05.000000000 -0700"
	}
	return append(row, t.Format(layout))
}

// shown returns the name with what is shown behind it.
func (l *lister) shown(e entry) string {
	s := e.name
	if l.c.has('Q') {
		s = strconv.Quote(s)
	}
	mode := e.st.Mode
	if l.long && mode&unix.S_IFMT == unix.S_IFLNK {
		if to, err := os.Readlink(e.path); err == nil {
			s += " -> " + to
			if !l.c.has('F') {
				return s
			}
			var st statT
			if syscall.Stat(e.path, &st) != nil {
				return s
			}
			mode = st.Mode
		}
	}
	switch k := mode & unix.S_IFMT; {
	case k == unix.S_IFDIR && (l.c.has('F') || l.c.has('p')):
		s += "/"
	case !l.c.has('F'):
	case k == unix.S_IFLNK:
		s += "@"
	case k == unix.S_IFIFO:
		s += "|"
	case k == unix.S_IFSOCK:
		s += "="
	case k == unix.S_IFREG && mode&0o111 != 0:
		s += "*"
	}
	return s
}

// columns prints cells below each other in as many columns as fit.
func (l *lister) columns(cells []string) {
	total := 80
	if w, _, err := term.GetSize(1); err == nil && w > 0 {
		total = w
	}
	for rows := 1; ; rows++ {
		n := (len(cells) + rows - 1) / rows
		widths := make([]int, n)
		sum := 0
		for i, s := range cells {
			widths[i/rows] = max(widths[i/rows], len(s)+2)
		}
		for _, w := range widths {
			sum += w
		}
		if sum-2 > total && n > 1 {
			continue
		}
		for r := range rows {
			for col := range n {
				i := col*rows + r
				if i >= len(cells) {
					continue
				}
				if (col+1)*rows+r < len(cells) {
					fmt.Fprintf(l.c.out, "%-*s", widths[col], cells[i])
				} else {
					l.c.out.WriteString(cells[i])
				}
			}
			l.c.out.WriteByte('\n')
		}
		return
	}
}

func stat(c *ctx) int {
	if !c.getopt("c:fLp:", "format=c", "file-system=f", "dereference=L", "printf=p") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	format := c.opt('c', "")
	for _, p := range c.args {
		if c.has('f') {
			c.statFS(p, format)
			continue
		}
		var st statT
		var err error
		if c.has('L') {
			err = syscall.Stat(p, &st)
		} else {
			err = syscall.Lstat(p, &st)
		}
		if err != nil {
			c.warn("cannot statx '%s': %s", p, reason(err))
			continue
		}
		switch {
		case c.has('p'):
			c.out.WriteString(unescape(statFormat(c.opt('p', ""), p, &st)))
			continue
		case format != "":
			fmt.Fprintln(c.out, statFormat(format, p, &st))
			continue
		}
		c.statLong(p, &st)
	}
	return c.code()
}

func fileType(st *statT) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Size == 0 {
			return "regular empty file"
		}
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR:
		return "character special file"
	case unix.S_IFBLK:
		return "block special file"
	case unix.S_IFIFO:
		return "fifo"
	}
	return "socket"
}

func stamp(ts syscall.Timespec) string {
	return time.Unix(ts.Sec, ts.Nsec).Format("2006-01-02 15:04:05.000000000 -0700")
}

// statFormat expands stat -c.
func statFormat(format, p string, st *statT) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		switch format[i] {
		case 'n':
			b.WriteString(p)
		case 'N':
			b.WriteString("'" + p + "'")
			if to, err := os.Readlink(p); err == nil {
				b.WriteString(" -> '" + to + "'")
			}
		case 's':
			fmt.Fprint(&b, st.Size)
		case 'a':
			fmt.Fprintf(&b, "%o", st.Mode&0o7777)
		case 'A':
			b.WriteString(modeString(st.Mode))
		case 'f':
			fmt.Fprintf(&b, "%x", st.Mode)
		case 'F':
			b.WriteString(fileType(st))
		case 'u':
			fmt.Fprint(&b, st.Uid)
		case 'U':
			b.WriteString(nameOf("/etc/passwd", st.Uid))
		case 'g':
			fmt.Fprint(&b, st.Gid)
		case 'G':
			b.WriteString(nameOf("/etc/group", st.Gid))
		case 'i':
			fmt.Fprint(&b, st.Ino)
		case 'h':
			fmt.Fprint(&b, st.Nlink)
		case 'd':
			fmt.Fprint(&b, st.Dev)
		case 'D':
			fmt.Fprintf(&b, "%x", st.Dev)
		case 't':
			fmt.Fprintf(&b, "%x", unix.Major(st.Rdev))
		case 'T':
			fmt.Fprintf(&b, "%x", unix.Minor(st.Rdev))
		case 'b':
			fmt.Fprint(&b, st.Blocks)
		case 'B':
			b.WriteString("512")
		case 'o':
			fmt.Fprint(&b, st.Blksize)
		case 'X':
			fmt.Fprint(&b, st.Atim.Sec)
		case 'Y':
			fmt.Fprint(&b, st.Mtim.Sec)
		case 'Z':
			fmt.Fprint(&b, st.Ctim.Sec)
		case 'x':
			b.WriteString(stamp(st.Atim))
		case 'y':
			b.WriteString(stamp(st.Mtim))
		case 'z':
			b.WriteString(stamp(st.Ctim))
		case '%':
			b.WriteByte('%')
		default:
			b.WriteString("?")
		}
	}
	return b.String()
}

// unescape expands backslash escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\0`, "\x00", `\\`, `\`).Replace(s)
}

func (c *ctx) statLong(p string, st *statT) {
	name := p
	if to, err := os.Readlink(p); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		name += " -> " + to
	}
	fmt.Fprintf(c.out, "  File: %s\n  Size: %-10d\tBlocks: %-10d IO Block: %-6d %s\n", name, st.Size, st.Blocks, st.Blksize, fileType(st))
	fmt.Fprintf(c.out, "Device: %d,%d\tInode: %-11d Links: %d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino, st.Nlink)
	if k := st.Mode & unix.S_IFMT; k == unix.S_IFCHR || k == unix.S_IFBLK {
		fmt.Fprintf(c.out, "     Device type: %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	fmt.Fprintf(c.out, "\nAccess: (%04o/%s)  Uid: (%5d/%8s)   Gid: (%5d/%8s)\n", st.Mode&0o7777, modeString(st.Mode),
		st.Uid, nameOf("/etc/passwd", st.Uid), st.Gid, nameOf("/etc/group", st.Gid))
	fmt.Fprintf(c.out, "Access: %s\nModify: %s\nChange: %s\n", stamp(st.Atim), stamp(st.Mtim), stamp(st.Ctim))
}

func (c *ctx) statFS(p, format string) {
	var st unix.Statfs_t
	if err := unix.Statfs(p, &st); err != nil {
		c.warn("cannot read file system information for '%s': %s", p, reason(err))
		return
	}
	if format == "" {
		format = "  File: \"%n\"\nType: %t\nBlock size: %s\nBlocks: Total: %b Free: %f Available: %a\nInodes: Total: %c Free: %d"
	}
	r := strings.NewReplacer("%n", p, "%t", fmt.Sprintf("%x", st.Type), "%s", fmt.Sprint(st.Bsize), "%S", fmt.Sprint(st.Frsize),
		"%b", fmt.Sprint(st.Blocks), "%f", fmt.Sprint(st.Bfree), "%a", fmt.Sprint(st.Bavail), "%c", fmt.Sprint(st.Files),
		"%d", fmt.Sprint(st.Ffree), "%l", fmt.Sprint(st.Namelen), "%T", fsName(uint64(st.Type)))
	fmt.Fprintln(c.out, r.Replace(format))
}

// fsName returns the name of a file system's magic number, statfs(2).
func fsName(t uint64) string {
	names := map[uint64]string{
		unix.EXT4_SUPER_MAGIC: "ext2/ext3", unix.TMPFS_MAGIC: "tmpfs", unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs",
		unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.SQUASHFS_MAGIC: "squashfs", unix.V9FS_MAGIC: "v9fs",
		unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.CGROUP2_SUPER_MAGIC: "cgroup2fs", unix.DEVPTS_SUPER_MAGIC: "devpts",
	}
	if n, ok := names[t]; ok {
		return n
	}
	return fmt.Sprintf("UNKNOWN (%#x)", t)
}

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

func find(c *ctx) int {
	f := finder{c: c, max: 1 << 30}
	for len(c.args) > 0 && !strings.HasPrefix(c.args[0], "-") && c.args[0] != "(" && c.args[0] != "!" {
		f.roots, c.args = append(f.roots, c.args[0]), c.args[1:]
	}
	if len(f.roots) == 0 {
		f.roots = []string{"."}
	}
	f.tokens = c.args
	expr, err := f.or()
	if err == nil && len(f.tokens) > 0 {
		err = fmt.Errorf("unexpected argument '%s'", f.tokens[0])
	}
	if err != nil {
		return c.fail(1, "%v", err)
	}
	if !f.acts {
		test := expr
		expr = func(e *found) bool {
			if test(e) {
				fmt.Fprintln(c.out, e.path)
			}
			return true
		}
	}
	for _, r := range f.roots {
		st, err := os.Lstat(r)
		if err != nil {
			c.warn("'%s': %s", r, reason(err))
			continue
		}
		f.visit(expr, r, st, 0)
	}
	for _, b := range f.batches {
		b()
	}
	return c.code()
}

type found struct {
	path  string
	st    fs.FileInfo
	prune bool
}

type predicate func(*found) bool

type finder struct {
	c        *ctx
	roots    []string
	tokens   []string
	acts     bool // an action other than printing was given
	min, max int
	depth    bool
	batches  []func()
}

func (f *finder) visit(expr predicate, p string, st fs.FileInfo, level int) {
	e := &found{path: p, st: st}
	if level >= f.min && !f.depth {
		expr(e)
	}
	if st.IsDir() && !e.prune && level < f.max {
		es, err := readDir(p)
		if err != nil {
			f.c.warn("'%s': %s", p, reason(err))
		}
		for _, d := range es {
			if dst, err := d.Info(); err == nil {
				f.visit(expr, strings.TrimSuffix(p, "/")+"/"+d.Name(), dst, level+1)
			}
		}
	}
	if level >= f.min && f.depth {
		expr(e)
	}
}

func (f *finder) next() (t string) {
	t, f.tokens = f.tokens[0], f.tokens[1:]
	return t
}

func (f *finder) or() (predicate, error) {
	a, err := f.and()
	for err == nil && len(f.tokens) > 0 && (f.tokens[0] == "-o" || f.tokens[0] == "-or") {
		f.next()
		var b predicate
		l := a
		if b, err = f.and(); err == nil {
			a = func(e *found) bool { return l(e) || b(e) }
		}
	}
	return a, err
}

func (f *finder) and() (predicate, error) {
	all := predicate(func(*found) bool { return true })
	for len(f.tokens) > 0 && f.tokens[0] != "-o" && f.tokens[0] != "-or" && f.tokens[0] != ")" {
		if f.tokens[0] == "-a" || f.tokens[0] == "-and" {
			f.next()
			continue
		}
		b, err := f.primary()
		if err != nil {
			return nil, err
		}
		l := all
		all = func(e *found) bool { return l(e) && b(e) }
	}
	return all, nil
}

func (f *finder) primary() (predicate, error) {
	t := f.next()
	arg := ""
	switch t {
	case "-name", "-iname", "-path", "-ipath", "-wholename", "-type", "-size", "-mtime", "-mmin", "-newer", "-maxdepth", "-mindepth", "-perm", "-user", "-group", "-links", "-inum", "-printf", "-regex":
		if len(f.tokens) == 0 {
			return nil, fmt.Errorf("missing argument to '%s'", t)
		}
		arg = f.next()
	}
	yes := func(*found) bool { return true }
	number := func(of func(*found) int64, unit int64) (predicate, error) {
		s, sign := arg, byte(0)
		if s != "" && (s[0] == '+' || s[0] == '-') {
			sign, s = s[0], s[1:]
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("invalid argument '%s' to '%s'", arg, t)
		}
		return func(e *found) bool {
			v := of(e)
			if unit > 1 {
				v = (v + unit - 1) / unit
			}
			switch sign {
			case '+':
				return v > n
			case '-':
				return v < n
			}
			return v == n
		}, nil
	}
	switch t {
	case "(":
		p, err := f.or()
		if err == nil && (len(f.tokens) == 0 || f.next() != ")") {
			err = fmt.Errorf("missing ')'")
		}
		return p, err
	case "!", "-not":
		if len(f.tokens) == 0 {
			return nil, fmt.Errorf("expected an expression after '%s'", t)
		}
		p, err := f.primary()
		return func(e *found) bool { return !p(e) }, err
	case "-true":
		return yes, nil
	case "-false":
		return func(*found) bool { return false }, nil
	case "-depth":
		f.depth = true
		return yes, nil
	case "-xdev", "-mount", "-noleaf":
		return yes, nil
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(arg)
		if t == "-maxdepth" {
			f.max = n
		} else {
			f.min = n
		}
		return yes, err
	case "-name", "-iname":
		return glob(arg, t == "-iname", func(e *found) string { return filepath.Base(e.path) })
	case "-path", "-ipath", "-wholename":
		return glob(arg, t == "-ipath", func(e *found) string { return e.path })
	case "-type":
		kinds := map[string]uint32{"f": unix.S_IFREG, "d": unix.S_IFDIR, "l": unix.S_IFLNK, "b": unix.S_IFBLK, "c": unix.S_IFCHR, "p": unix.S_IFIFO, "s": unix.S_IFSOCK}
		var want []uint32
		for _, k := range strings.Split(arg, ",") {
			m, ok := kinds[k]
			if !ok {
				return nil, fmt.Errorf("unknown argument to -type: %s", arg)
			}
			want = append(want, m)
		}
		return func(e *found) bool { return slices.Contains(want, e.st.Sys().(*statT).Mode&unix.S_IFMT) }, nil
	case "-empty":
		return func(e *found) bool {
			if e.st.IsDir() {
				es, err := os.ReadDir(e.path)
				return err == nil && len(es) == 0
			}
			return e.st.Mode().IsRegular() && e.st.Size() == 0
		}, nil
	case "-size":
		units := map[byte]int64{'c': 1, 'w': 2, 'b': 512, 'k': 1024, 'M': 1 << 20, 'G': 1 << 30}
		unit := int64(512)
		if u, ok := units[arg[max(0, len(arg)-1)]]; ok {
			unit, arg = u, arg[:len(arg)-1]
		}
		return number(func(e *found) int64 { return e.st.Size() }, unit)
	case "-links":
		return number(func(e *found) int64 { return int64(e.st.Sys().(*statT).Nlink) }, 1)
	case "-inum":
		return number(func(e *found) int64 { return int64(e.st.Sys().(*statT).Ino) }, 1)
	case "-mtime":
		return number(func(e *found) int64 { return int64(time.Since(e.st.ModTime()) / (24 * time.Hour)) }, 1)
	case "-mmin":
		return number(func(e *found) int64 { return int64((time.Since(e.st.ModTime()) + time.Minute - 1) / time.Minute) }, 1)
	case "-newer":
		ref, err := os.Stat(arg)
		if err != nil {
			return nil, fmt.Errorf("'%s': %s", arg, reason(err))
		}
		return func(e *found) bool { return e.st.ModTime().After(ref.ModTime()) }, nil
	case "-user", "-group":
		file := "/etc/passwd"
		if t == "-group" {
			file = "/etc/group"
		}
		id, err := lookupID(file, arg)
		return func(e *found) bool {
			st := e.st.Sys().(*statT)
			if t == "-group" {
				return int(st.Gid) == id
			}
			return int(st.Uid) == id
		}, err
	case "-perm":
		mode, how := arg, byte(0)
		if mode != "" && (mode[0] == '-' || mode[0] == '/') {
			how, mode = mode[0], mode[1:]
		}
		m, err := parseMode(mode, 0, false, 0)
		return func(e *found) bool {
			p := e.st.Sys().(*statT).Mode & 0o7777
			switch how {
			case '-':
				return p&m == m
			case '/':
				return p&m != 0 || m == 0
			}
			return p == m
		}, err
	case "-prune":
		return func(e *found) bool { e.prune = true; return true }, nil
	case "-print", "-print0":
		f.acts = true
		end := "\n"
		if t == "-print0" {
			end = "\x00"
		}
		return func(e *found) bool { f.c.out.WriteString(e.path + end); return true }, nil
	case "-printf":
		f.acts = true
		return func(e *found) bool { f.c.out.WriteString(findFormat(arg, e)); return true }, nil
	case "-delete":
		f.acts, f.depth = true, true
		return func(e *found) bool {
			if err := os.Remove(e.path); err != nil {
				f.c.warn("cannot delete '%s': %s", e.path, reason(err))
				return false
			}
			return true
		}, nil
	case "-quit":
		f.acts = true
		return func(*found) bool { f.c.out.Flush(); os.Exit(f.c.code()); return false }, nil
	case "-exec", "-ok", "-execdir":
		return f.exec()
	}
	return nil, fmt.Errorf("unknown predicate '%s'", t)
}

// exec parses the command of -exec up to ";" or "{} +".
func (f *finder) exec() (predicate, error) {
	f.acts = true
	var cmd []string
	for {
		if len(f.tokens) == 0 {
			return nil, fmt.Errorf("missing argument to '-exec'")
		}
		t := f.next()
		if t == ";" {
			return func(e *found) bool {
				args := make([]string, len(cmd))
				for i, a := range cmd {
					args[i] = strings.ReplaceAll(a, "{}", e.path)
				}
				return f.c.runCommand(args, nil) == 0
			}, nil
		}
		if t == "+" && len(cmd) > 0 && cmd[len(cmd)-1] == "{}" {
			var paths []string
			base := cmd[:len(cmd)-1]
			run := func() {
				if len(paths) > 0 && f.c.runCommand(append(slices.Clone(base), paths...), nil) != 0 {
					f.c.failed = true
				}
				paths = nil
			}
			f.batches = append(f.batches, run)
			return func(e *found) bool {
				if paths = append(paths, e.path); len(paths) >= 1000 {
					run()
				}
				return true
			}, nil
		}
		cmd = append(cmd, t)
	}
}

func findFormat(format string, e *found) string {
	st := e.st.Sys().(*statT)
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		switch {
		case format[i] == '\\' && i+1 < len(format):
			i++
			if j := strings.IndexByte("abfnrtv0\\", format[i]); j >= 0 {
				b.WriteByte("\a\b\f\n\r\t\v\x00\\"[j])
			} else {
				b.WriteString(`\` + string(format[i]))
			}
		case format[i] == '%' && i+1 < len(format):
			i++
			switch format[i] {
			case 'p':
				b.WriteString(e.path)
			case 'f':
				b.WriteString(filepath.Base(e.path))
			case 'h':
				b.WriteString(filepath.Dir(e.path))
			case 's':
				fmt.Fprint(&b, st.Size)
			case 'm':
				fmt.Fprintf(&b, "%o", st.Mode&0o7777)
			case 'M':
				b.WriteString(modeString(st.Mode))
			case 'y':
				k := modeString(st.Mode)[0]
				if k == '-' {
					k = 'f'
				}
				b.WriteByte(k)
			case 'u':
				b.WriteString(nameOf("/etc/passwd", st.Uid))
			case 'g':
				b.WriteString(nameOf("/etc/group", st.Gid))
			case 'n':
				fmt.Fprint(&b, st.Nlink)
			case 'i':
				fmt.Fprint(&b, st.Ino)
			case 'l':
				to, _ := os.Readlink(e.path)
				b.WriteString(to)
			case '%':
				b.WriteByte('%')
			}
		default:
			b.WriteByte(format[i])
		}
	}
	return b.String()
}

// glob matches with a shell pattern in which "*" matches "/" too, as find and
// case have it.
func glob(pat string, fold bool, of func(*found) string) (predicate, error) {
	re, err := globRegexp(pat, fold)
	if err != nil {
		return nil, err
	}
	return func(e *found) bool { return re.MatchString(of(e)) }, nil
}
