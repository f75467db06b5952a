package agent

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

// A stdio is the command's standard streams: pipes, or a pseudo-terminal.
type stdio struct {
	in    *os.File    // our end of stdin
	out   [3]*os.File // our ends of stdout and stderr, by stream
	child [3]int      // the command's ends, -1 when closed
	tty   bool
}

func (s *session) openStdio(job *link.Job) (*stdio, error) {
	std := &stdio{child: [3]int{-1, -1, -1}, tty: job.TTY}
	var err error
	if job.TTY {
		err = std.openPty(job)
	} else {
		err = std.openPipes()
	}
	if err != nil {
		std.close()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outputs = std.out
	if job.TTY {
		s.pty = std.in
		setWinsize(s.pty, job.Rows, job.Cols)
	}
	return std, nil
}

func (std *stdio) openPipes() error {
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		var p [2]int // read end, write end
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("%s: pipe: %w", name, err)
		}
		ours, theirs := p[0], p[1]
		if i == 0 {
			ours, theirs = p[1], p[0]
		}
		std.child[i] = theirs
		// Ours is in the runtime's poller, so that closing it or a deadline
		// ends a pending read or write; theirs blocks, as programs expect.
		if err := unix.SetNonblock(ours, true); err != nil {
			unix.Close(ours)
			return fmt.Errorf("%s: %w", name, err)
		}
		f := os.NewFile(uintptr(ours), name)
		if i == 0 {
			std.in = f
		} else {
			std.out[i] = f
		}
	}
	return nil
}

// openPty opens a pseudo-terminal, pty(7). Its slave is all three streams.
func (std *stdio) openPty(job *link.Job) error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("pseudo-terminal: open /dev/ptmx: %w", err)
	}
	std.in = os.NewFile(uintptr(master), "/dev/ptmx")
	std.out[link.Stdout] = std.in
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("pseudo-terminal: unlock: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("pseudo-terminal: number: %w", err)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	slave, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pseudo-terminal: open %s: %w", name, err)
	}
	std.child[0] = slave
	if job.UID != 0 {
		unix.Fchown(slave, int(job.UID), -1)
	}
	for i := 1; i < 3; i++ {
		if std.child[i], err = unix.FcntlInt(uintptr(slave), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			std.child[i] = -1
			return fmt.Errorf("pseudo-terminal: %w", err)
		}
	}
	return nil
}

// endInput is the end of the command's input: a closed pipe, or on a terminal
// what the user would type. Two of them, because the first one only ends a
// line that was begun.
func (std *stdio) endInput() {
	if !std.tty {
		std.in.Close()
		return
	}
	rc, err := std.in.SyscallConn()
	if err != nil {
		return
	}
	var eof byte
	rc.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err == nil && t.Lflag&unix.ICANON != 0 {
			eof = t.Cc[unix.VEOF]
		}
	})
	if eof != 0 {
		io.WriteString(std.in, string([]byte{eof, eof}))
	}
}

// closeChild closes our copies of the command's ends.
func (std *stdio) closeChild() {
	for i, fd := range std.child {
		if fd >= 0 {
			unix.Close(fd)
		}
		std.child[i] = -1
	}
}

// close closes everything.
func (std *stdio) close() {
	std.closeChild()
	if std.in != nil {
		std.in.Close()
	}
	for _, f := range std.out {
		if f != nil {
			f.Close()
		}
	}
}

func setWinsize(f *os.File, rows, cols uint16) {
	if rows == 0 && cols == 0 {
		return
	}
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		})
	}
}
