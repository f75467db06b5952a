package link

import (
	"io"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest"
)

// fakeUART is the second UART of the machine and the guest's driver for it: a
// FIFO of 16 bytes from the host, single bytes to it.
type fakeUART struct {
	mu     sync.Mutex
	cond   sync.Cond
	fifo   []byte
	closed bool
	port   *HostPort
	rings  int // bytes the guest read
}

func newFakeUART() *fakeUART {
	u := &fakeUART{}
	u.cond.L = &u.mu
	return u
}

func (u *fakeUART) Receive(p []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := min(len(p), 16-len(u.fifo))
	u.fifo = append(u.fifo, p[:n]...)
	u.cond.Signal()
	return n
}

func (u *fakeUART) Read(p []byte) (int, error) {
	u.mu.Lock()
	for len(u.fifo) == 0 && !u.closed {
		u.cond.Wait()
	}
	if u.closed {
		u.mu.Unlock()
		return 0, io.EOF
	}
	n := copy(p, u.fifo)
	u.fifo = u.fifo[n:]
	u.rings += n
	u.mu.Unlock()
	u.port.ReceiveReady()
	return n, nil
}

func (u *fakeUART) Write(p []byte) (int, error) {
	for _, b := range p {
		u.port.Transmit(b)
	}
	return len(p), nil
}

func (u *fakeUART) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	u.cond.Broadcast()
	return nil
}

const testGPA = guest.GPA(0x1_0000_0000)

// testWindow returns guest memory with a window in it, and the guest's mapping
// of the same pages.
func testWindow(t testing.TB, size uint32) (*guest.Memory, []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("window", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "window")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	m, err := guest.New(guest.Region{Base: testGPA, Size: uint64(size), File: f})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return m, mem
}

// testEnds is a connected pair of transport ends in one process.
type testEnds struct {
	host     *HostPort
	guest    Conn
	uart     *fakeUART
	mem      []byte // guest's mapping of the window
	doorbell int    // guest->host rings; read after the guest stopped
}

func windowEnds(t testing.TB, size uint32) *testEnds {
	t.Helper()
	m, mem := testWindow(t, size)
	u := newFakeUART()
	port, err := NewHostPort(HostPortConfig{Memory: m, GPA: testGPA, Size: size, UART: u})
	if err != nil {
		t.Fatal(err)
	}
	u.port = port
	e := &testEnds{host: port, uart: u, mem: mem}
	var mu sync.Mutex
	e.guest, err = NewGuestWindow(mem, func() error {
		mu.Lock()
		e.doorbell++
		mu.Unlock()
		port.Kick(DoorbellWindow)
		return nil
	}, u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.guest.Close(); e.host.Close() })
	return e
}

func uartEnds(t testing.TB) *testEnds {
	t.Helper()
	u := newFakeUART()
	port, err := NewHostPort(HostPortConfig{UART: u})
	if err != nil {
		t.Fatal(err)
	}
	u.port = port
	g, err := NewGuestUART(u)
	if err != nil {
		t.Fatal(err)
	}
	e := &testEnds{host: port, guest: g, uart: u}
	t.Cleanup(func() { e.guest.Close(); e.host.Close() })
	return e
}
