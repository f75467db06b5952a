package main

import (
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal is the user's terminal in raw mode.
type terminal struct {
	fd      int
	state   *term.State
	restore sync.Once
}

// rawTerminal puts the terminal on stdin into raw mode. The caller must
// Restore it on every path out, including a panic's.
func rawTerminal() (*terminal, error) {
	fd := int(os.Stdin.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return &terminal{fd: fd, state: state}, nil
}

// Restore gives the terminal its mode back, once.
func (t *terminal) Restore() {
	if t != nil {
		t.restore.Do(func() { term.Restore(t.fd, t.state) })
	}
}

func (t *terminal) size() (rows, cols uint16) {
	if ws, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ); err == nil {
		return ws.Row, ws.Col
	}
	return 24, 80
}

// resizes sends the size after each change, until stop is closed.
func (t *terminal) resizes(stop <-chan struct{}) <-chan [2]uint16 {
	out := make(chan [2]uint16, 1)
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGWINCH)
	go func() {
		defer signal.Stop(sig)
		for {
			select {
			case <-stop:
				return
			case <-sig:
				r, c := t.size()
				select {
				case <-out: // an older size nobody took
				default:
				}
				out <- [2]uint16{r, c}
			}
		}
	}()
	return out
}

const escapeKey = 0x01 // Ctrl-A

const escapeHelp = "\r\nhvpost: Ctrl-A x  leave, stopping the guest\r\n" +
	"hvpost: Ctrl-A h  this help\r\nhvpost: Ctrl-A Ctrl-A  send Ctrl-A\r\n"

// escapes filters the escape sequences out of what the user types.
type escapes struct {
	r     io.Reader
	help  io.Writer
	leave func()
	armed bool
}

// Read returns what is meant for the guest; a read may return nothing.
func (e *escapes) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	out := p[:0]
	for _, b := range p[:n] {
		switch {
		case !e.armed && b == escapeKey:
			e.armed = true
			continue
		case !e.armed:
			out = append(out, b)
		case b == 'x' || b == 'X':
			e.leave()
		case b == 'h' || b == '?':
			io.WriteString(e.help, escapeHelp)
		case b == escapeKey:
			out = append(out, b)
		default:
			out = append(out, b) // an unknown sequence: the key alone
		}
		e.armed = false
	}
	return len(out), err
}
