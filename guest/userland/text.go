package userland

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/core/base64"
	"golang.org/x/sys/unix"
)

func cat(c *ctx) int {
	if !c.getopt("nbsvETAeu", "number=n", "show-ends=E", "number-nonblank=b", "squeeze-blank=s", "show-all=A") {
		return 1
	}
	plain := true
	for _, o := range c.opts {
		plain = plain && o.name == 'u'
	}
	n, blank := 0, false
	c.eachInput(func(_ string, r io.Reader) error {
		if plain {
			// Straight to the file, so that the kernel may move the bytes.
			if err := c.out.Flush(); err != nil {
				return err
			}
			if f, ok := r.(*os.File); ok {
				_, err := io.Copy(os.Stdout, f)
				return err
			}
			return c.copyThrough(r)
		}
		return lines(r, func(l []byte, last bool) bool {
			if c.has('s') && len(l) == 0 && blank {
				return true
			}
			blank = len(l) == 0
			if c.has('b') && len(l) > 0 || c.has('n') && !c.has('b') {
				n++
				fmt.Fprintf(c.out, "%6d\t", n)
			}
			if c.has('T') || c.has('A') {
				l = bytes.ReplaceAll(l, []byte("\t"), []byte("^I"))
			}
			if c.has('v') || c.has('A') || c.has('e') {
				l = visible(l)
			}
			c.out.Write(l)
			if !last {
				if c.has('E') || c.has('A') || c.has('e') {
					c.out.WriteByte('$')
				}
				c.out.WriteByte('\n')
			}
			return true
		})
	})
	return c.code()
}

// copyThrough copies the standard input as it comes.
func (c *ctx) copyThrough(r io.Reader) error {
	if c.in == io.Reader(os.Stdin) {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	_, err := io.Copy(c.out, r)
	return err
}

// visible shows control characters as cat -v does.
func visible(l []byte) []byte {
	var b []byte
	for _, ch := range l {
		if ch >= 128 {
			b = append(b, 'M', '-')
			ch -= 128
		}
		switch {
		case ch == 127:
			b = append(b, '^', '?')
		case ch < 32 && ch != '\t':
			b = append(b, '^', ch+64)
		default:
			b = append(b, ch)
		}
	}
	return b
}

// count parses the argument of head and tail: a number with an optional unit
// and sign. sign is 0 when there is none.
func count(s string) (n int64, sign byte, err error) {
	if s != "" && (s[0] == '+' || s[0] == '-') {
		sign, s = s[0], s[1:]
	}
	n, err = size(s)
	return n, sign, err
}

// units are the suffixes of sizes: powers of 1024, or of 1000 with a B.
var units = [...]struct {
	suffix string
	n      int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1000}, {"KB", 1000}, {"MB", 1000000}, {"GB", 1000000000}, {"TB", 1000000000000},
	{"K", 1 << 10}, {"k", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"b", 512}, {"c", 1}, {"w", 2},
}

// size parses a number of bytes with an optional unit.
func size(s string) (int64, error) {
	mul := int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, mul = rest, u.n
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<63-1)/mul {
		return 0, fmt.Errorf("invalid number '%s'", s)
	}
	return n * mul, nil
}

// oldCount turns the historic "-5" into "-n 5".
func (c *ctx) oldCount() {
	if len(c.args) > 0 && len(c.args[0]) > 1 && c.args[0][0] == '-' {
		if _, err := strconv.ParseUint(c.args[0][1:], 10, 63); err == nil {
			c.args = append([]string{"-n", c.args[0][1:]}, c.args[1:]...)
		}
	}
}

func head(c *ctx) int {
	c.oldCount()
	if !c.getopt("n:c:qv", "lines=n", "bytes=c", "quiet=q", "verbose=v") {
		return 1
	}
	byBytes, arg := c.has('c'), c.opt('n', "10")
	if byBytes {
		arg = c.opt('c', "")
	}
	n, sign, err := count(arg)
	if err != nil {
		return c.fail(1, "%v", err)
	}
	first := true
	c.eachInput(func(name string, r io.Reader) error {
		c.title(name, &first)
		switch {
		case byBytes && sign != '-':
			_, err := io.Copy(c.out, io.LimitReader(r, n))
			return err
		case byBytes:
			b, err := io.ReadAll(r)
			if k := int64(len(b)) - n; k > 0 {
				c.out.Write(b[:k])
			}
			return err
		case sign == '-':
			all, err := readLines(r)
			for i := 0; i < len(all)-int(min(n, int64(len(all)))); i++ {
				c.out.Write(all[i])
			}
			return err
		}
		left := n
		if left == 0 {
			return nil
		}
		return lines(r, func(l []byte, last bool) bool {
			c.out.Write(l)
			if !last {
				c.out.WriteByte('\n')
			}
			left--
			return left > 0
		})
	})
	return c.code()
}

// title prints the name of an input in front of it where head and tail do.
func (c *ctx) title(name string, first *bool) {
	if c.has('q') || len(c.args) < 2 && !c.has('v') {
		return
	}
	if !*first {
		c.out.WriteByte('\n')
	}
	*first = false
	if name == "-" {
		name = "standard input"
	}
	fmt.Fprintf(c.out, "==> %s <==\n", name)
}

// readLines returns all lines with their newlines.
func readLines(r io.Reader) (all [][]byte, err error) {
	err = lines(r, func(l []byte, last bool) bool {
		l = append([]byte(nil), l...)
		if !last {
			l = append(l, '\n')
		}
		all = append(all, l)
		return true
	})
	return all, err
}

func tail(c *ctx) int {
	c.oldCount()
	if !c.getopt("n:c:qvfF", "lines=n", "bytes=c", "quiet=q", "verbose=v", "follow=f") {
		return 1
	}
	byBytes, arg := c.has('c'), c.opt('n', "10")
	if byBytes {
		arg = c.opt('c', "")
	}
	n, sign, err := count(arg)
	if err != nil {
		return c.fail(1, "%v", err)
	}
	first := true
	c.eachInput(func(name string, r io.Reader) error {
		c.title(name, &first)
		var err error
		switch {
		case byBytes && sign == '+':
			if _, err = io.CopyN(io.Discard, r, max(n-1, 0)); err == nil {
				_, err = io.Copy(c.out, r)
			} else if err == io.EOF {
				err = nil
			}
		case byBytes:
			var b []byte
			b, err = tailBytes(r, n)
			c.out.Write(b)
		case sign == '+':
			i := int64(0)
			err = lines(r, func(l []byte, last bool) bool {
				if i++; i >= n {
					c.out.Write(l)
					if !last {
						c.out.WriteByte('\n')
					}
				}
				return true
			})
		default:
			var ring [][]byte
			pos := 0
			err = lines(r, func(l []byte, last bool) bool {
				if n == 0 {
					return true
				}
				l = append([]byte(nil), l...)
				if !last {
					l = append(l, '\n')
				}
				if int64(len(ring)) < n {
					ring = append(ring, l)
				} else {
					ring[pos] = l
					pos = (pos + 1) % len(ring)
				}
				return true
			})
			for i := range ring {
				c.out.Write(ring[(pos+i)%len(ring)])
			}
		}
		if f, ok := r.(*os.File); ok && err == nil && (c.has('f') || c.has('F')) {
			return c.follow(f)
		}
		return err
	})
	return c.code()
}

// tailBytes returns the last n bytes of r, in memory of no more than twice
// that.
func tailBytes(r io.Reader, n int64) ([]byte, error) {
	if s, ok := r.(io.Seeker); ok {
		if end, err := s.Seek(0, io.SeekEnd); err == nil {
			s.Seek(max(0, end-n), io.SeekStart)
		}
	}
	var b []byte
	buf := make([]byte, 32<<10)
	for {
		k, err := r.Read(buf)
		if b = append(b, buf[:k]...); int64(len(b)) > 2*n+1<<16 {
			b = append(b[:0], b[int64(len(b))-n:]...)
		}
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return b[max(0, int64(len(b))-n):], err
		}
	}
}

// follow prints what is appended to f, woken by inotify, until killed.
func (c *ctx) follow(f *os.File) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, f.Name(), unix.IN_MODIFY); err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	ev := make([]byte, 4096)
	for {
		if st, err := f.Stat(); err == nil {
			if at, err := f.Seek(0, io.SeekCurrent); err == nil && st.Size() < at {
				f.Seek(0, io.SeekStart) // truncated: from the start again
			}
		}
		if _, err := io.Copy(c.out, f); err != nil {
			return err
		}
		if err := c.out.Flush(); err != nil {
			return err
		}
		if _, err := unix.Read(fd, ev); err != nil && err != unix.EINTR {
			return os.NewSyscallError("read", err)
		}
	}
}

func wc(c *ctx) int {
	if !c.getopt("lwcmL", "lines=l", "words=w", "bytes=c", "chars=m", "max-line-length=L") {
		return 1
	}
	type counts struct{ l, w, m, b, max int64 }
	var all []counts
	var names []string
	var total counts
	c.eachInput(func(name string, r io.Reader) error {
		var n counts
		buf := make([]byte, 64<<10)
		inWord, width := false, int64(0)
		for {
			k, err := r.Read(buf)
			n.b += int64(k)
			for _, ch := range buf[:k] {
				if ch == '\n' {
					n.l++
					n.max, width = max(n.max, width), 0
				} else if ch&0xc0 != 0x80 {
					width++
				}
				if ch&0xc0 != 0x80 {
					n.m++
				}
				space := ch == ' ' || ch >= '\t' && ch <= '\r'
				if !space && !inWord {
					n.w++
				}
				inWord = !space
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
		n.max = max(n.max, width)
		all, names = append(all, n), append(names, name)
		total = counts{total.l + n.l, total.w + n.w, total.m + n.m, total.b + n.b, max(total.max, n.max)}
		return nil
	})
	if len(c.args) == 0 && len(names) > 0 {
		names[0] = ""
	}
	if len(c.args) > 1 {
		all, names = append(all, total), append(names, "total")
	}
	pick := func(n counts) (v []int64) {
		none := !c.has('l') && !c.has('w') && !c.has('c') && !c.has('m') && !c.has('L')
		for _, f := range []struct {
			on bool
			n  int64
		}{{none || c.has('l'), n.l}, {none || c.has('w'), n.w}, {c.has('m'), n.m}, {none || c.has('c'), n.b}, {c.has('L'), n.max}} {
			if f.on {
				v = append(v, f.n)
			}
		}
		return v
	}
	// One number of one input stands alone; columns are as wide as the largest
	// number needs, and 7 for what is not a file, as GNU wc does it.
	width := 1
	if len(pick(total)) > 1 || len(c.args) > 1 {
		width = len(strconv.FormatInt(total.b, 10))
		for _, name := range c.args {
			st, err := os.Stat(name)
			if name == "-" || err == nil && !st.Mode().IsRegular() {
				width = max(width, 7)
			}
		}
		if len(c.args) == 0 {
			width = 7
			if st, err := os.Stdin.Stat(); err == nil && st.Mode().IsRegular() && c.in == io.Reader(os.Stdin) {
				width = len(strconv.FormatInt(total.b, 10))
			}
		}
	}
	for i, n := range all {
		for j, v := range pick(n) {
			if j > 0 {
				c.out.WriteByte(' ')
			}
			fmt.Fprintf(c.out, "%*d", width, v)
		}
		if names[i] != "" {
			c.out.WriteString(" " + names[i])
		}
		c.out.WriteByte('\n')
	}
	return c.code()
}

func tee(c *ctx) int {
	if !c.getopt("aip", "append=a", "ignore-interrupts=i") {
		return 1
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if c.has('a') {
		mode = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	var files []*os.File
	for _, n := range c.args {
		f, err := os.OpenFile(n, mode, 0o666)
		if err != nil {
			c.warn("%s: %s", n, reason(err))
			continue
		}
		defer f.Close()
		files = append(files, f)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := c.in.Read(buf)
		c.out.Write(buf[:n])
		c.out.Flush()
		for i, f := range files {
			if f == nil || n == 0 {
				continue
			}
			if _, werr := f.Write(buf[:n]); werr != nil {
				c.warn("%s: %s", f.Name(), reason(werr))
				files[i] = nil
			}
		}
		if err == io.EOF {
			return c.code()
		}
		if err != nil {
			return c.fail(1, "read error: %s", reason(err))
		}
	}
}

func tac(c *ctx) int {
	if !c.getopt("") {
		return 1
	}
	c.eachInput(func(_ string, r io.Reader) error {
		all, err := readLines(r)
		for _, l := range slices.Backward(all) {
			c.out.Write(l)
		}
		return err
	})
	return c.code()
}

func rev(c *ctx) int {
	if !c.getopt("") {
		return 1
	}
	c.eachInput(func(_ string, r io.Reader) error {
		return lines(r, func(l []byte, last bool) bool {
			rs := []rune(string(l))
			slices.Reverse(rs)
			c.out.WriteString(string(rs))
			if !last {
				c.out.WriteByte('\n')
			}
			return true
		})
	})
	return c.code()
}

func yes(c *ctx) int {
	text := "y"
	if len(c.args) > 0 {
		text = strings.Join(c.args, " ")
	}
	block := []byte(strings.Repeat(text+"\n", 1+8192/(len(text)+1)))
	for {
		if _, err := os.Stdout.Write(block); err != nil {
			return 1
		}
	}
}

func seq(c *ctx) int {
	// Options end at the first number, which may be negative.
	var sep, format = "\n", ""
	pad := false
	args := c.args
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && !strings.ContainsAny(args[0][1:2], "0123456789.") {
		a := args[0]
		args = args[1:]
		if a == "--" {
			break
		}
		switch {
		case a == "-w" || a == "--equal-width":
			pad = true
		case (a == "-s" || a == "-f") && len(args) > 0:
			if a == "-s" {
				sep = args[0]
			} else {
				format = args[0]
			}
			args = args[1:]
		case strings.HasPrefix(a, "-s"):
			sep = a[2:]
		case strings.HasPrefix(a, "-f"):
			format = a[2:]
		case strings.HasPrefix(a, "--separator="):
			sep = a[len("--separator="):]
		default:
			return c.fail(1, "invalid option '%s'", a)
		}
	}
	if len(args) < 1 || len(args) > 3 {
		return c.fail(1, "needs one to three numbers")
	}
	first, step, last := "1", "1", args[len(args)-1]
	if len(args) > 1 {
		first = args[0]
	}
	if len(args) > 2 {
		step = args[1]
	}
	var v [3]float64
	prec := 0
	for i, s := range []string{first, step, last} {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return c.fail(1, "invalid floating point argument: '%s'", s)
		}
		v[i] = f
		if _, frac, ok := strings.Cut(s, "."); ok && i < 2 {
			prec = max(prec, len(frac))
		}
	}
	if v[1] == 0 {
		return c.fail(1, "invalid Zero increment value: '%s'", step)
	}
	width := 0
	if pad {
		lp := prec
		width = max(len(strconv.FormatFloat(v[0], 'f', lp, 64)), len(strconv.FormatFloat(v[2], 'f', lp, 64)))
	}
	for i := 0; ; i++ {
		x := v[0] + float64(i)*v[1]
		// Half of the last place forgives what binary fractions lose.
		slack := v[1] * 1e-9
		if v[1] > 0 && x > v[2]+slack || v[1] < 0 && x < v[2]+slack {
			if i > 0 {
				c.out.WriteByte('\n')
			}
			return 0
		}
		if i > 0 {
			c.out.WriteString(sep)
		}
		if format != "" {
			fmt.Fprintf(c.out, format, x)
		} else {
			if _, err := fmt.Fprintf(c.out, "%0*.*f", width, prec, x); err != nil {
				return 1
			}
		}
	}
}

func base64Cmd(c *ctx) int {
	c.out.Flush()
	// u-root's command knows -d; GNU's long name and line wrap option come on
	// top, of which only "do not wrap" is what scripts ask for.
	var args []string
	wrap := 76
	for i := 0; i < len(c.args); i++ {
		switch a := c.args[i]; {
		case a == "--decode":
			args = append(args, "-d")
		case a == "-w" && i+1 < len(c.args):
			i++
			wrap, _ = strconv.Atoi(c.args[i])
		case strings.HasPrefix(a, "-w"):
			wrap, _ = strconv.Atoi(a[2:])
		case strings.HasPrefix(a, "--wrap="):
			wrap, _ = strconv.Atoi(a[len("--wrap="):])
		default:
			args = append(args, a)
		}
	}
	decode := slices.Contains(args, "-d")
	var out bytes.Buffer
	cmd := base64.New()
	cmd.SetIO(c.in, &out, c.err)
	if err := cmd.RunContext(context.Background(), args...); err != nil {
		c.out.Write(out.Bytes())
		return c.fail(1, "%s", reason(err))
	}
	if decode {
		c.out.Write(out.Bytes())
		return 0
	}
	b := bytes.TrimRight(out.Bytes(), "\n")
	if wrap <= 0 {
		c.out.Write(b)
		return 0
	}
	for len(b) > 0 {
		k := min(wrap, len(b))
		c.out.Write(b[:k])
		c.out.WriteByte('\n')
		b = b[k:]
	}
	return 0
}
