package session

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
)

const (
	// tailLines is how many of the console's last lines a failed run shows.
	tailLines = 50
	// maxLine bounds a kept line; a guest may print without ever ending one.
	maxLine = 1024
)

// console takes the kernel log: it keeps the last lines, notices a panic, and
// passes everything on to a file and to a writer.
type console struct {
	file *os.File  // may be nil
	w    io.Writer // may be nil

	mu    sync.Mutex
	line  []byte
	tail  []string // the last tailLines lines, oldest first
	panic string   // the first line of a panic, without its time stamp

	// panicked is called once, with no lock held, when that line is complete.
	panicked func()
}

// panicStart is how a Linux kernel begins a panic, whatever the log level.
const panicStart = "Kernel panic - not syncing"

// Write takes what the UART sent. A writer that fails is dropped and its
// error returned; what is kept in memory goes on.
func (c *console) Write(p []byte) (int, error) {
	c.keep(p)
	var err error
	if c.file != nil {
		if _, err = c.file.Write(p); err != nil {
			c.file = nil
		}
	}
	if c.w != nil {
		if _, werr := c.w.Write(p); werr != nil {
			c.w = nil
			err = werr
		}
	}
	return len(p), err
}

func (c *console) keep(p []byte) {
	c.mu.Lock()
	var tell bool
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		chunk := p
		if i >= 0 {
			chunk = p[:i]
		}
		if room := maxLine - len(c.line); room > 0 {
			c.line = append(c.line, chunk[:min(room, len(chunk))]...)
		}
		if i < 0 {
			break
		}
		p = p[i+1:]
		tell = c.endLine() || tell
	}
	f := c.panicked
	c.mu.Unlock()
	if tell && f != nil {
		f()
	}
}

// endLine moves the current line to the tail and reports whether it began a
// panic.
func (c *console) endLine() bool {
	s := clean(string(bytes.TrimRight(c.line, "\r")))
	c.line = c.line[:0]
	c.tail = append(c.tail, s)
	if len(c.tail) > tailLines {
		c.tail = c.tail[len(c.tail)-tailLines:]
	}
	if c.panic == "" {
		if first := panicLine(s); first != "" {
			c.panic = first
			return true
		}
	}
	return false
}

// Tail returns the last lines.
func (c *console) Tail() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	tail := append([]string(nil), c.tail...)
	if len(c.line) > 0 {
		tail = append(tail, clean(string(c.line)))
	}
	return tail[max(0, len(tail)-tailLines):]
}

// Panic returns the first line of a panic, or "".
func (c *console) Panic() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.panic
}

// stamp is the kernel log's time stamp and, in some configurations, the
// caller's id.
var stamp = regexp.MustCompile(`^(<\d+>)?(\[ *\d+\.\d+\](\[ *[CT]\d+\])? )?`)

// panicLine returns s from the panic's first words on, or "".
func panicLine(s string) string {
	s = s[len(stamp.FindString(s)):]
	if strings.HasPrefix(s, panicStart) {
		return s
	}
	return ""
}

// panicText finds the panic's first line in a text of several, newest last.
func panicText(text []byte) string {
	for l := range strings.Lines(string(text)) {
		if p := panicLine(clean(strings.TrimRight(l, "\r\n"))); p != "" {
			return p
		}
	}
	return ""
}

// clean makes what a guest printed safe for a terminal: control characters
// other than tabs become visible.
func clean(s string) string {
	if strings.IndexFunc(s, isControl) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isControl(r) {
			fmt.Fprintf(&b, "\\x%02x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7F || r >= 0x80 && r < 0xA0 }
