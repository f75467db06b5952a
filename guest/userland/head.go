package userland

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

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
