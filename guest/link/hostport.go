package link

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hvpost/hvpost/guest"
)

const (
	// DoorbellSize is the size in bytes of the doorbell: the page right behind
	// the window, where no memory is. A 32-bit write to its first word rings
	// the host. It is not an I/O port, because Debian's kernels have no
	// /dev/port, and /dev/mem reaches this as it reaches the window.
	DoorbellSize = guest.PageSize
	// DoorbellWindow is what the guest writes there; the first one selects
	// the window.
	DoorbellWindow = 'W'
	// UARTSelect as the first byte on the UART selects the UART as byte
	// stream.
	UARTSelect = 'U'
	// uartRing is the byte that rings the guest through the UART.
	uartRing = 0x01

	// WindowSize is the usual size of the window in bytes: a ring of 512 KiB
	// in each direction holds the whole credit of both output streams.
	WindowSize = 2 << 20

	// maxUARTBacklog bounds what the guest may have sent through the UART and
	// the host not read, in bytes: the credit of both output streams, a HELLO
	// and an EXIT, and the INFOs a Host accepts.
	maxUARTBacklog = 2*Credit + (2+maxInfos)*(MaxPayload+HeaderSize)
)

// A UARTReceiver is the receive FIFO of the guest's second UART (ttyS1).
type UARTReceiver interface {
	// Receive puts the bytes of p that fit into the FIFO and returns how many
	// did. It does not block. It is called without any lock of this package.
	Receive(p []byte) int
}

// HostPortConfig says where the hardware of the link is.
type HostPortConfig struct {
	Memory *guest.Memory // holds the window; nil: only the UART
	GPA    guest.GPA     // page aligned
	Size   uint32        // bytes, see WindowSize
	UART   UARTReceiver
}

// A HostPort is the host end of the transport. It is a Conn towards the
// monitor; the machine calls Kick, Transmit and ReceiveReady, from any
// goroutine, none of which blocks. Which transport it is the guest decides
// with its first byte.
type HostPort struct {
	uart UARTReceiver
	gpa  guest.GPA
	size uint32
	win  *windowEnd // nil without a window

	mode     atomic.Uint32
	selected chan struct{} // closed when mode is set
	once     sync.Once
	done     chan struct{}
	stop     sync.Once

	// UART mode.
	wmu      sync.Mutex // one Write at a time
	readable bell
	writable bell
	mu       sync.Mutex
	rx       []byte // protected by mu: from the guest, not read
	rxOff    int    // protected by mu: read bytes at the start of rx
	rxErr    error  // protected by mu: latched
}

const (
	modeNone = iota
	modeWindow
	modeUART
)

// NewHostPort lays out the window. Call it before the guest runs.
func NewHostPort(cfg HostPortConfig) (*HostPort, error) {
	h := &HostPort{
		uart: cfg.UART, gpa: cfg.GPA, size: cfg.Size, selected: make(chan struct{}),
		done: make(chan struct{}), readable: newBell(), writable: newBell(),
	}
	if cfg.Memory == nil {
		return h, nil
	}
	m, err := newGuestMem(cfg.Memory, cfg.GPA, cfg.Size)
	if err != nil {
		return nil, err
	}
	if err := layoutWindow(m); err != nil {
		return nil, err
	}
	// The host knows the layout it wrote; the words in the window are the
	// guest's copy.
	data, _ := ringData(cfg.Size)
	gh, hg := newRing(m, 0, data), newRing(m, cfg.Size/2, data)
	h.win = newWindowEnd(gh, hg, h.ringGuest)
	return h, nil
}

// Cmdline returns the kernel parameter that tells the agent where the window
// is, or "" without a window.
func (h *HostPort) Cmdline() string {
	if h.win == nil {
		return ""
	}
	return fmt.Sprintf("%s%#x,%#x", cmdlineKey, uint64(h.gpa), h.size)
}

// ringGuest puts one byte into the UART. A full FIFO needs none: the guest has
// not seen the bytes in it yet and will look at the rings when it does.
func (h *HostPort) ringGuest() error {
	h.uart.Receive([]byte{uartRing})
	return nil
}

// choose sets the mode once.
func (h *HostPort) choose(mode uint32) {
	h.once.Do(func() {
		h.mode.Store(mode)
		close(h.selected)
	})
}

// Kick takes a byte that the guest wrote to the doorbell. It never blocks.
func (h *HostPort) Kick(v uint8) {
	if h.win == nil {
		return
	}
	if h.mode.Load() == modeNone && v == DoorbellWindow {
		h.choose(modeWindow)
	}
	if h.mode.Load() == modeWindow {
		h.win.kick()
	}
}

// Transmit takes a byte that the guest sent through the UART. It never blocks.
// Before a mode is chosen, bytes other than UARTSelect are a driver's probing.
func (h *HostPort) Transmit(b byte) {
	switch h.mode.Load() {
	case modeNone:
		if b == UARTSelect {
			h.choose(modeUART)
		}
	case modeUART:
		h.mu.Lock()
		if h.rxErr == nil {
			if len(h.rx)-h.rxOff < maxUARTBacklog {
				h.rx = append(h.rx, b)
			} else {
				h.rxErr = corruptf("more than %d bytes in flight on the UART", maxUARTBacklog)
			}
		}
		h.mu.Unlock()
		h.readable.ring()
	}
}

// ReceiveReady says that the UART's receive FIFO has room again. It never
// blocks.
func (h *HostPort) ReceiveReady() { h.writable.ring() }

// Mode returns "window", "uart", or "" before the guest chose.
func (h *HostPort) Mode() string { return [...]string{"", "window", "uart"}[h.mode.Load()] }

// Read implements Conn. It blocks until the guest chose a transport and sent
// something.
func (h *HostPort) Read(p []byte) (int, error) {
	select {
	case <-h.selected:
	case <-h.done:
		return 0, io.ErrClosedPipe
	}
	if h.mode.Load() == modeWindow {
		return h.win.Read(p)
	}
	for {
		h.mu.Lock()
		n := copy(p, h.rx[h.rxOff:])
		h.rxOff += n
		// What was read is cut off when it outweighs the rest, so the buffer
		// stays in proportion to the backlog at a constant cost per byte.
		if h.rxOff > 4096 && h.rxOff*2 > len(h.rx) || h.rxOff == len(h.rx) {
			h.rx, h.rxOff = h.rx[:copy(h.rx, h.rx[h.rxOff:])], 0
		}
		err := h.rxErr
		h.mu.Unlock()
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		select {
		case <-h.readable:
		case <-h.done:
			return 0, io.ErrClosedPipe
		}
	}
}

// Write implements Conn. It blocks until the guest chose a transport and took
// the bytes.
func (h *HostPort) Write(p []byte) (int, error) {
	select {
	case <-h.selected:
	case <-h.done:
		return 0, io.ErrClosedPipe
	}
	if h.mode.Load() == modeWindow {
		return h.win.Write(p)
	}
	h.wmu.Lock()
	defer h.wmu.Unlock()
	for total := 0; ; {
		select {
		case <-h.done:
			return total, io.ErrClosedPipe
		default:
		}
		n := h.uart.Receive(p[total:])
		if total += n; total == len(p) {
			return total, nil
		}
		if n > 0 {
			continue
		}
		select {
		case <-h.writable:
		case <-h.done:
			return total, io.ErrClosedPipe
		}
	}
}

// Close unblocks Read and Write for good.
func (h *HostPort) Close() error {
	h.stop.Do(func() { close(h.done) })
	if h.win != nil {
		h.win.Close()
	}
	return nil
}

// guestMem is the window in guest memory. The range was checked once; memory
// regions of a running guest do not go away.
type guestMem struct {
	m   *guest.Memory
	gpa guest.GPA
	n   uint32
}

func newGuestMem(m *guest.Memory, gpa guest.GPA, size uint32) (guestMem, error) {
	if gpa%guest.PageSize != 0 || size%(2*guest.PageSize) != 0 {
		return guestMem{}, fmt.Errorf("link window of %d bytes at %v: not whole pages", size, gpa)
	}
	if !m.Contains(gpa, uint64(size)) || size == 0 {
		return guestMem{}, fmt.Errorf("link window of %d bytes at %v: %w", size, gpa, guest.ErrRange)
	}
	return guestMem{m: m, gpa: gpa, n: size}, nil
}

func (g guestMem) size() uint32 { return g.n }

func (g guestMem) word(off uint32) *atomic.Uint32 {
	w, err := g.m.Word(g.gpa + guest.GPA(off))
	if err != nil {
		panic("link: window word: " + err.Error())
	}
	return w
}

func (g guestMem) read(p []byte, off uint32) {
	if err := g.m.ReadAt(p, g.gpa+guest.GPA(off)); err != nil {
		panic("link: window read: " + err.Error())
	}
}

func (g guestMem) write(p []byte, off uint32) {
	if err := g.m.WriteAt(p, g.gpa+guest.GPA(off)); err != nil {
		panic("link: window write: " + err.Error())
	}
}
