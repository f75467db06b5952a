package link

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cmdlineKey begins the kernel parameter "hvpost.link=0xGPA,0xSIZE".
const cmdlineKey = "hvpost.link="

// maxWindowSize bounds what the agent maps, in bytes.
const maxWindowSize = 256 << 20

// ParseCmdline finds the window in a kernel command line. ok is false when
// there is none.
func ParseCmdline(cmdline string) (gpa uint64, size uint32, ok bool, err error) {
	for _, f := range strings.Fields(cmdline) {
		v, found := strings.CutPrefix(f, cmdlineKey)
		if !found {
			continue
		}
		a, b, _ := strings.Cut(v, ",")
		gpa, err := strconv.ParseUint(a, 0, 52)
		if err != nil {
			return 0, 0, false, fmt.Errorf("kernel parameter %s: address: %w", f, err)
		}
		n, err := strconv.ParseUint(b, 0, 32)
		if err != nil {
			return 0, 0, false, fmt.Errorf("kernel parameter %s: size: %w", f, err)
		}
		if page := uint64(os.Getpagesize()); gpa%page != 0 || n%page != 0 || n == 0 || n > maxWindowSize {
			return 0, 0, false, fmt.Errorf("kernel parameter %s: not a window of whole pages up to %d bytes", f, maxWindowSize)
		}
		return gpa, uint32(n), true, nil
	}
	return 0, 0, false, nil
}

// A GuestPort is the guest end of the transport.
type GuestPort struct {
	Conn
	Transport string // "window", or "uart" and why not the window
}

// guestPaths are the device files of the link.
type guestPaths struct{ mem, tty string }

var linuxPaths = guestPaths{mem: "/dev/mem", tty: "/dev/ttyS1"}

// OpenGuest opens the link from inside the guest: the window that cmdline
// names, or the UART when there is no window or the kernel does not let us map
// it (no /dev/mem, lockdown).
func OpenGuest(cmdline string) (*GuestPort, error) { return openGuest(cmdline, linuxPaths) }

func openGuest(cmdline string, dev guestPaths) (*GuestPort, error) {
	tty, err := openUART(dev.tty)
	if err != nil {
		return nil, fmt.Errorf("agent link: %w", err)
	}
	gpa, size, ok, err := ParseCmdline(cmdline)
	if err == nil && !ok {
		err = errors.New("no " + cmdlineKey + " on the kernel command line")
	}
	if err == nil {
		var c Conn
		if c, err = openGuestWindow(gpa, size, dev, tty); err == nil {
			return &GuestPort{c, "window"}, nil
		}
	}
	c, uerr := NewGuestUART(tty)
	if uerr != nil {
		tty.Close()
		return nil, fmt.Errorf("agent link: %s: %w (window: %v)", dev.tty, uerr, err)
	}
	return &GuestPort{c, "uart: " + err.Error()}, nil
}

func openGuestWindow(gpa uint64, size uint32, dev guestPaths, tty *os.File) (Conn, error) {
	fd, err := unix.Open(dev.mem, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dev.mem, err)
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(fd, int64(gpa), int(size)+DoorbellSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap %s at %#x: %w", dev.mem, gpa, err)
	}
	bell := mem[size:]
	c, err := NewGuestWindow(mem[:size:size], func() error {
		ringDoorbell(bell)
		return nil
	}, tty)
	if err != nil {
		unix.Munmap(mem)
		return nil, err
	}
	return c, nil
}

// openUART opens the terminal in raw mode: no echo, no line editing, no flow
// control, eight bits.
func openUART(path string) (*os.File, error) {
	// Non-blocking, so that the file takes part in the runtime's poller and
	// Close ends a pending read.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	t := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200}
	t.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &t); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: set raw mode: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// guestWindow is the guest end of the window. A goroutine of its own turns the
// bytes that arrive on the UART into kicks; Close joins it.
type guestWindow struct {
	*windowEnd
	rings    io.ReadCloser
	listened chan struct{}
}

// NewGuestWindow returns the guest end of the window mapped at mem. ring rings
// the host; every byte that rings delivers is a ring from the host. Close
// closes rings, which must end a pending Read.
func NewGuestWindow(mem []byte, ring func() error, rings io.ReadCloser) (Conn, error) {
	gh, hg, err := openWindow(sliceMem(mem))
	if err != nil {
		return nil, err
	}
	g := &guestWindow{windowEnd: newWindowEnd(hg, gh, ring), rings: rings, listened: make(chan struct{})}
	go g.listen()
	return g, nil
}

func (g *guestWindow) listen() {
	defer close(g.listened)
	var buf [64]byte
	for {
		if _, err := g.rings.Read(buf[:]); err != nil {
			// Deaf: whoever waits would wait for ever.
			g.windowEnd.Close()
			return
		}
		g.kick()
	}
}

func (g *guestWindow) Close() error {
	g.windowEnd.Close()
	err := g.rings.Close()
	<-g.listened
	return err
}

// NewGuestUART selects the UART as byte stream and returns it as a Conn.
func NewGuestUART(tty io.ReadWriteCloser) (Conn, error) {
	if _, err := tty.Write([]byte{UARTSelect}); err != nil {
		return nil, err
	}
	return tty, nil
}
