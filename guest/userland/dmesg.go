package userland

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dmesg reads the kernel's log from /dev/kmsg, which gives one record a read.
func dmesg(c *ctx) int {
	if !c.getopt("CcHn:rtTwxkl:", "clear=C", "read-clear=c", "console-level=n", "raw=r", "notime=t", "follow=w", "kernel=k") {
		return 1
	}
	switch {
	case c.has('n'):
		n, err := strconv.Atoi(c.opt('n', ""))
		if err != nil || n < 1 || n > 8 {
			return c.fail(1, "unknown level '%s'", c.opt('n', ""))
		}
		if err := os.WriteFile("/proc/sys/kernel/printk", []byte(strconv.Itoa(n)), 0); err != nil {
			return c.fail(1, "%s", reason(err))
		}
		return 0
	case c.has('C'):
		if _, err := unix.Klogctl(unix.SYSLOG_ACTION_CLEAR, nil); err != nil {
			return c.fail(1, "clear kernel buffer failed: %s", reason(err))
		}
		return 0
	}
	if !c.has('w') {
		return c.dmesgBuffer()
	}
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return c.fail(1, "cannot open /dev/kmsg: %s", reason(err))
	}
	defer unix.Close(fd)
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EPIPE || err == unix.EINTR {
			continue // records were overwritten before we read them
		}
		if err != nil {
			return c.fail(1, "read /dev/kmsg: %s", reason(err))
		}
		head, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		if f := strings.Split(head, ","); len(f) > 2 {
			us, _ := strconv.ParseUint(f[2], 10, 64)
			if !c.has('t') {
				fmt.Fprintf(c.out, "[%5d.%06d] ", us/1e6, us%1e6)
			}
		}
		fmt.Fprintln(c.out, text)
		if c.out.Flush() != nil {
			return 1
		}
	}
}

// dmesgBuffer prints the log as syslog(2) gives it, without the levels.
func (c *ctx) dmesgBuffer() int {
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return c.fail(1, "read kernel buffer failed: %s", reason(err))
	}
	buf := make([]byte, size+4096)
	action := unix.SYSLOG_ACTION_READ_ALL
	if c.has('c') {
		action = unix.SYSLOG_ACTION_READ_CLEAR
	}
	n, err := unix.Klogctl(action, buf)
	if err != nil {
		return c.fail(1, "read kernel buffer failed: %s", reason(err))
	}
	for l := range bytes.Lines(buf[:n]) {
		if !c.has('r') {
			if i := bytes.IndexByte(l, '>'); len(l) > 0 && l[0] == '<' && i > 0 {
				l = l[i+1:]
			}
			if i := bytes.IndexByte(l, ']'); c.has('t') && len(l) > 0 && l[0] == '[' && i > 0 {
				l = bytes.TrimPrefix(l[i+1:], []byte(" "))
			}
		}
		c.out.Write(l)
	}
	if n > 0 && buf[n-1] != '\n' {
		c.out.WriteByte('\n')
	}
	return 0
}
