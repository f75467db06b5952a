package link

import (
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// An input is the caller's standard input as something whose pending Read can
// be ended, where that is possible: for files.
type input struct {
	io.Reader
	polled   *polledReader
	joinable bool // stop ends a pending Read
}

func newInput(r io.Reader) *input {
	if r == nil {
		return &input{Reader: eofReader{}, joinable: true}
	}
	f, ok := r.(*os.File)
	if !ok {
		return &input{Reader: r}
	}
	// Read deadlines would not do: standard input is often inherited in
	// blocking mode. The file is polled together with a pipe that tells the
	// end.
	var p [2]int
	if unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return &input{Reader: r}
	}
	pr := &polledReader{f: f, wake: p[0], hangup: p[1]}
	return &input{Reader: pr, polled: pr, joinable: true}
}

// stop ends a pending Read, and later ones, with an error.
func (i *input) stop() {
	if i.polled != nil {
		i.polled.stop()
	}
}

// release stops and frees what newInput made. Preconditions: nobody reads.
func (i *input) release() {
	i.stop()
	if i.polled != nil {
		unix.Close(i.polled.wake)
	}
}

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }

// A polledReader reads a file whose reads block in the kernel.
type polledReader struct {
	f      *os.File
	wake   int // read end of a pipe: hung up when stopped
	hangup int // write end
	once   sync.Once
}

func (p *polledReader) stop() { p.once.Do(func() { unix.Close(p.hangup) }) }

func (p *polledReader) Read(b []byte) (n int, err error) {
	rc, err := p.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	ready := false
	cerr := rc.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(p.wake), Events: unix.POLLIN}}
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = unix.Poll(fds, -1)
		}
		ready = err == nil && fds[1].Revents == 0
	})
	switch {
	case cerr != nil:
		return 0, cerr
	case err != nil:
		return 0, os.NewSyscallError("poll", err)
	case !ready:
		return 0, os.ErrDeadlineExceeded
	}
	return p.f.Read(b)
}
