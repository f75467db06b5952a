package inside

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// streams are the file descriptors of one command: the child's ends and ours.
type streams struct {
	child [3]uintptr
	in    *os.File    // writes its stdin
	out   [3]*os.File // reads its Stdout and Stderr; nil where merged
	pty   *os.File    // the terminal's master, also in and out[Stdout]; or nil
}

// openStreams makes three pipes, or a terminal.
func (c *session) openStreams(q *wire.Request) (*streams, error) {
	if q.TTY {
		return openTTY(q)
	}
	var io streams
	var own [3]int
	for i := range io.child {
		if wire.Stream(i) == wire.Stderr && q.Merge {
			fd, err := unix.FcntlInt(io.child[wire.Stdout], unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				io.closeChild()
				io.closeOwn()
				return nil, fmt.Errorf("dup: %w", err)
			}
			io.child[i] = uintptr(fd)
			continue
		}
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			io.closeChild()
			io.closeOwn()
			return nil, fmt.Errorf("pipe: %w", err)
		}
		theirs, ours := p[1], p[0]
		if wire.Stream(i) == wire.Stdin {
			theirs, ours = p[0], p[1]
		}
		// A window's worth: fewer switches on the one CPU. A smaller pipe works as well.
		_, _ = unix.FcntlInt(uintptr(ours), unix.F_SETPIPE_SZ, wire.Window)
		io.child[i], own[i] = uintptr(theirs), ours
		f := nonblocking(ours, "pipe")
		if wire.Stream(i) == wire.Stdin {
			io.in = f
		} else {
			io.out[i] = f
		}
	}
	// Commands may run as another user, who must be able to open /dev/stdout.
	for _, fd := range io.child {
		_ = unix.Fchown(int(fd), int(q.UID), int(q.GID))
	}
	return &io, nil
}

// nonblocking wraps a descriptor so that reads and writes wait in Go's poller, where Close can end them.
func nonblocking(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true) // cannot fail on a descriptor just made
	return os.NewFile(uintptr(fd), name)
}

func openTTY(q *wire.Request) (*streams, error) {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	fail := func(err error) (*streams, error) {
		unix.Close(m)
		return nil, fmt.Errorf("terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	n, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
	if err != nil {
		return fail(err)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	s, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	io := &streams{pty: nonblocking(m, name)}
	io.in, io.out[wire.Stdout] = io.pty, io.pty
	io.child[0] = uintptr(s)
	for i := 1; i < 3; i++ {
		fd, err := unix.FcntlInt(uintptr(s), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			io.closeChild()
			io.closeOwn()
			return nil, fmt.Errorf("terminal: %w", err)
		}
		io.child[i] = uintptr(fd)
	}
	if err := unix.Fchown(s, int(q.UID), int(q.GID)); err == nil {
		err = setSize(io.pty, q.Rows, q.Cols)
	}
	if err != nil {
		io.closeChild()
		io.closeOwn()
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return io, nil
}

func setSize(pty *os.File, rows, cols uint16) error {
	rc, err := pty.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = rc.Control(func(fd uintptr) {
		e = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err != nil {
		return err
	}
	return e
}

func (s *streams) closeChild() {
	for i, fd := range s.child {
		if fd != 0 {
			unix.Close(int(fd))
		}
		s.child[i] = 0
	}
}

func (s *streams) closeOwn() {
	for _, f := range []*os.File{s.in, s.out[wire.Stdout], s.out[wire.Stderr]} {
		if f != nil {
			f.Close()
		}
	}
}

// pump starts the goroutines that carry a command's streams. The group ends when all output is delivered or dropped,
// stdin's channel when the inbox is at its end or aborted and our end of the pipe is closed.
func (c *session) pump(s *streams) (*sync.WaitGroup, <-chan struct{}) {
	var wg sync.WaitGroup
	for i, f := range s.out {
		if f == nil {
			continue
		}
		wg.Go(func() {
			// The command's end, the client's, and a terminal's hang-up (EIO) all end it; none is an error.
			_ = wire.Send(c.srv.w, c.id, wire.Stream(i), c.gates[i], f)
			f.Close()
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		dst := io.Writer(s.in)
		// A write can wait for a command that does not read. When the command has ended, Abort cannot end such
		// a write but the closed read end of the pipe does.
		_ = wire.Receive(c.srv.w, c.id, wire.Stdin, c.stdin, dst)
		if s.pty != nil {
			// The end of input on a terminal is a key; the master stays open for output.
			_, _ = s.pty.Write([]byte{4})
			return
		}
		s.in.Close()
	}()
	return &wg, done
}

// populated reads the one line of cgroup.events that matters.
func populated(events string) bool {
	for line := range strings.Lines(events) {
		if strings.TrimSpace(line) == "populated 1" {
			return true
		}
	}
	return false
}
