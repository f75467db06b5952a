package link

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	"github.com/hvpost/hvpost/guest"
)

// fakeDevices are files in the place of the guest's device files: a terminal
// for the UART, a plain file for memory.
func fakeDevices(t *testing.T) (dev guestPaths, host *os.File, mem string) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Skipf("LOUD: no terminal here: %v", err)
	}
	t.Cleanup(func() { master.Close(); slave.Close() })
	dir := t.TempDir()
	dev = guestPaths{mem: filepath.Join(dir, "mem"), tty: slave.Name()}
	return dev, master, dev.mem
}

// TestOpenGuestWindow opens the window as the agent does and sends both ways.
func TestOpenGuestWindow(t *testing.T) {
	dev, uart, mem := fakeDevices(t)
	const gpa = 0x10000
	f, err := os.Create(mem)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(gpa + WindowSize + DoorbellSize); err != nil {
		t.Fatal(err)
	}
	m, err := guest.New(guest.Region{Base: gpa, Size: WindowSize, File: f, Offset: gpa})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	h, err := NewHostPort(HostPortConfig{Memory: m, GPA: gpa, Size: WindowSize, UART: fileUART{uart}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	g, err := openGuest("quiet "+h.Cmdline()+" x=y\n", dev)
	if err != nil || g.Transport != "window" {
		t.Fatalf("%+v, %v", g, err)
	}
	go g.Write([]byte("up"))
	b := make([]byte, 2)
	// The doorbell is the first word of the page behind the window.
	bell := make([]byte, DoorbellSize)
	for bell[0] == 0 {
		if _, err := f.ReadAt(bell, gpa+WindowSize); err != nil {
			t.Fatal(err)
		}
	}
	if bell[0] != DoorbellWindow || !bytes.Equal(bell[4:], make([]byte, DoorbellSize-4)) {
		t.Fatalf("doorbell % x", bell[:16])
	}
	h.Kick(bell[0])
	if _, err := io.ReadFull(h, b); err != nil || string(b) != "up" {
		t.Fatalf("%q, %v", b, err)
	}
	got := make(chan string, 1)
	go func() {
		b := make([]byte, 4)
		io.ReadFull(g, b)
		got <- string(b)
	}()
	if _, err := h.Write([]byte("down")); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "down" {
		t.Fatalf("%q", s)
	}
	// Close ends a Read that waits for the UART.
	end := make(chan error, 1)
	go func() { _, err := g.Read(b); end <- err }()
	g.Close()
	if err := <-end; err != io.ErrClosedPipe {
		t.Errorf("Read after Close: %v", err)
	}
}

type fileUART struct{ f *os.File }

func (u fileUART) Receive(p []byte) int { n, _ := u.f.Write(p); return n }

// TestOpenGuestFallback: whatever is wrong with the window, the UART carries
// the link, and says why.
func TestOpenGuestFallback(t *testing.T) {
	for name, tt := range map[string]struct {
		cmdline string
		spoil   func(guestPaths)
		why     string
	}{
		"no window":   {"quiet", func(guestPaths) {}, "no hvpost.link"},
		"bad window":  {"hvpost.link=zzz", func(guestPaths) {}, "address"},
		"no mem":      {"hvpost.link=0x1000,0x200000", func(guestPaths) {}, "mem"},
		"not a magic": {"hvpost.link=0x1000,0x200000", func(d guestPaths) { os.WriteFile(d.mem, make([]byte, 4<<20), 0o600) }, "magic"},
	} {
		t.Run(name, func(t *testing.T) {
			dev, uart, _ := fakeDevices(t)
			tt.spoil(dev)
			g, err := openGuest(tt.cmdline, dev)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if !strings.HasPrefix(g.Transport, "uart: ") || !strings.Contains(g.Transport, tt.why) {
				t.Errorf("transport %q, want the UART because of %q", g.Transport, tt.why)
			}
			// Raw both ways: no echo, nothing translated.
			all := make([]byte, 256)
			for i := range all {
				all[i] = byte(i)
			}
			go g.Write(all)
			up := make([]byte, 257)
			if _, err := io.ReadFull(uart, up); err != nil || up[0] != UARTSelect || string(up[1:]) != string(all) {
				t.Fatalf("host got % x, %v", up, err)
			}
			go uart.Write(all)
			down := make([]byte, 256)
			if _, err := io.ReadFull(g, down); err != nil || string(down) != string(all) {
				t.Fatalf("guest got % x, %v", down, err)
			}
		})
	}
	if _, err := openGuest("", guestPaths{tty: "/no/such/tty"}); err == nil {
		t.Error("no UART and no error")
	} else if !strings.Contains(fmt.Sprint(err), "/no/such/tty") {
		t.Errorf("%v", err)
	}
}
