package userland

import (
	"fmt"
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
