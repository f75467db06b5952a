package main

import (
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal is the user's terminal. A nil one is none, and that is no error.
type terminal struct {
	fd   int
	keys *escapes // what the user types

	mu    sync.Mutex  // Restore is called by the signals' goroutine too
	state *term.State // before MakeRaw; nil unless raw
	done  bool        // restored for good
}

// userTerminal returns the terminal on stdin, or nil.
func userTerminal() *terminal {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return nil
	}
	return &terminal{fd: fd}
}

// MakeRaw puts the terminal into raw mode. The caller must Restore it on
// every path out, including a panic's.
func (t *terminal) MakeRaw() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done || t.state != nil {
		return nil
	}
	var err error
	t.state, err = term.MakeRaw(t.fd)
	return err
}

// Restore gives the terminal its mode back, for good.
func (t *terminal) Restore() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = true
	if t.state != nil {
		term.Restore(t.fd, t.state)
		t.state = nil
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

// maxTypeAhead is how much typed text waits for a guest that does not read.
// More stays in the terminal.
const maxTypeAhead = 1 << 20

// escapes filters the escape sequences out of what the user types. It reads
// on while nobody reads from it: leaving must work in a guest that hangs, and
// above all in one that has not booted yet.
type escapes struct {
	help  io.Writer
	leave func()
	armed bool

	pump sync.WaitGroup

	mu     sync.Mutex
	change sync.Cond
	typed  []byte
	err    error // the end of r, or EOF after Wait
}

func newEscapes(help io.Writer, leave func()) *escapes {
	e := &escapes{help: help, leave: leave}
	e.change.L = &e.mu
	return e
}

// Start begins to read r. The caller must end r's Read and then call Wait.
func (e *escapes) Start(r io.Reader) { e.pump.Go(func() { e.take(r) }) }

func (e *escapes) take(r io.Reader) {
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		out := e.filter(b[:n])
		e.mu.Lock()
		e.typed = append(e.typed, out...)
		e.change.Broadcast()
		for len(e.typed) >= maxTypeAhead && e.err == nil {
			e.change.Wait()
		}
		if e.err == nil {
			e.err = err
		}
		err = e.err
		e.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Read waits for something typed that is meant for the guest.
func (e *escapes) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.typed) == 0 && e.err == nil {
		e.change.Wait()
	}
	n := copy(p, e.typed)
	e.typed = e.typed[n:]
	e.change.Broadcast()
	if n == 0 && len(p) > 0 {
		return 0, e.err
	}
	return n, nil
}

// Wait ends all reads and waits for the pump, whose reader has ended.
func (e *escapes) Wait() {
	e.mu.Lock()
	if e.err == nil {
		e.err = io.EOF
	}
	e.change.Broadcast()
	e.mu.Unlock()
	e.pump.Wait()
}

// filter returns, in place, what is meant for the guest.
func (e *escapes) filter(typed []byte) []byte {
	out := typed[:0]
	for _, b := range typed {
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
	return out
}

// keys reads the terminal until it is told to stop, and takes nothing from it
// afterwards: what is typed then is for who comes next.
type keys struct {
	f    *os.File
	wake *os.File // readable when it is to stop
}

func (k *keys) Read(p []byte) (int, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(k.f.Fd()), Events: unix.POLLIN}, {Fd: int32(k.wake.Fd()), Events: unix.POLLIN}}
		switch _, err := unix.Poll(fds, -1); {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case fds[1].Revents != 0:
			return 0, io.EOF
		}
		return k.f.Read(p)
	}
}

// StartKeys begins to read what the user types, until stop is called.
func (t *terminal) StartKeys() (stop func(), err error) {
	if t == nil {
		return func() {}, nil
	}
	wake, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	t.keys.Start(&keys{f: os.Stdin, wake: wake})
	return func() {
		end.Close()
		t.keys.Wait()
		wake.Close()
	}, nil
}
