package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hvpost/hvpost/guest"
)

const smallWindow = 2 * (ringHeader + minRingData)

func TestLayoutGolden(t *testing.T) {
	_, mem := testWindow(t, WindowSize)
	if err := layoutWindow(sliceMem(mem)); err != nil {
		t.Fatal(err)
	}
	// magic "HPVQ", 512 KiB of data; only the guest->host ring starts with its
	// reader waiting.
	head := []byte{0x48, 0x50, 0x56, 0x51, 0, 0, 8, 0}
	for _, base := range []int{0, WindowSize / 2} {
		if !bytes.Equal(mem[base:base+8], head) {
			t.Errorf("header at %#x: % x, want % x", base, mem[base:base+8], head)
		}
		wait := uint32(0)
		if base == 0 {
			wait = 1
		}
		for off, want := range map[int]uint32{64: 0, 128: 0, 192: wait, 256: 0} {
			if got := binary.LittleEndian.Uint32(mem[base+off:]); got != want {
				t.Errorf("word at %#x: %d, want %d", base+off, got, want)
			}
		}
	}
}

func TestRingDataSizes(t *testing.T) {
	for _, tt := range []struct{ window, data uint32 }{
		{WindowSize, 512 << 10},
		{smallWindow, minRingData},
		{smallWindow + 8192, minRingData},
		{4 << 20, 1 << 20},
		{1 << 31, maxRingData},
	} {
		got, err := ringData(tt.window)
		if err != nil || got != tt.data {
			t.Errorf("window of %#x: data %#x, %v; want %#x", tt.window, got, err, tt.data)
		}
	}
	if _, err := ringData(smallWindow - 2); err == nil {
		t.Error("a window too small for a frame was accepted")
	}
}

func TestHostPortRefusesBadWindow(t *testing.T) {
	m, _ := testWindow(t, WindowSize)
	for _, c := range []HostPortConfig{
		{Memory: m, GPA: testGPA + 1, Size: WindowSize},
		{Memory: m, GPA: testGPA, Size: WindowSize + 4096},
		{Memory: m, GPA: testGPA, Size: 0},
		{Memory: m, GPA: testGPA + guest.PageSize, Size: WindowSize},
		{Memory: m, GPA: testGPA, Size: 64 << 10},
	} {
		if _, err := NewHostPort(c); err == nil {
			t.Errorf("window %v+%#x was accepted", c.GPA, c.Size)
		}
	}
}

// TestRingStream moves random pieces through a ring from indices around the
// 32-bit wrap and checks that the bytes come out in order.
func TestRingStream(t *testing.T) {
	_, mem := testWindow(t, smallWindow)
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.OneOf(rapid.Just(uint32(0)), rapid.Uint32Range(1<<32-1<<18, 1<<32-1), rapid.Uint32()).Draw(t, "start")
		r := newRing(sliceMem(mem), 0, minRingData)
		r.write.Store(start)
		r.read.Store(start)
		w := ringWriter{ring: r, w: start, r: start}
		rd := ringReader{ring: r, r: start, w: start}
		src, dst := rand.New(rand.NewPCG(1, 2)), rand.New(rand.NewPCG(1, 2))
		fill := func(p []byte, g *rand.Rand) []byte {
			for i := range p {
				p[i] = byte(g.Uint32())
			}
			return p
		}
		inFlight := 0
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				n := rapid.IntRange(1, minRingData+100).Draw(t, "n")
				want := min(n, minRingData-inFlight)
				p := fill(make([]byte, want), src)
				got, _, err := w.put(append(p, make([]byte, n-want)...))
				if err != nil || got != want {
					t.Fatalf("put %d with %d in flight: %d, %v", n, inFlight, got, err)
				}
				inFlight += got
			},
			"get": func(t *rapid.T) {
				p := make([]byte, rapid.IntRange(1, minRingData+100).Draw(t, "n"))
				got, _, err := rd.get(p)
				if err != nil || got != min(len(p), inFlight) {
					t.Fatalf("get %d with %d in flight: %d, %v", len(p), inFlight, got, err)
				}
				inFlight -= got
				if want := fill(make([]byte, got), dst); !bytes.Equal(p[:got], want) {
					t.Fatal("bytes differ")
				}
			},
		})
	})
}

// TestRingHostileIndex sets the peer's index to each class of bad value: the
// view latches, stays latched when the index is repaired, and touches no data.
func TestRingHostileIndex(t *testing.T) {
	_, mem := testWindow(t, smallWindow)
	for _, start := range []uint32{0, 7, 1 << 31, 1<<32 - 5} {
		for _, tt := range []struct {
			name string
			set  func(w, r uint32) uint32 // bad value of the peer's index
		}{
			{"past the end", func(w, r uint32) uint32 { return r + minRingData + 1 }},
			{"backwards", func(w, r uint32) uint32 { return w - 1 }},
			{"half way round", func(w, r uint32) uint32 { return w + 1<<31 }},
			{"far", func(w, r uint32) uint32 { return w + 1<<30 }},
		} {
			t.Run(fmt.Sprintf("reader/%s/%#x", tt.name, start), func(t *testing.T) {
				q := ringReader{ring: newRing(sliceMem(mem), 0, minRingData), r: start, w: start + 10}
				q.write.Store(tt.set(q.w, q.r))
				for range 2 {
					if n, ring, err := q.get(make([]byte, 100)); !errors.Is(err, ErrCorrupt) || n != 0 || ring {
						t.Fatalf("got %d, %v, %v", n, ring, err)
					}
					q.write.Store(q.w)
				}
			})
		}
		for _, tt := range []struct {
			name string
			bad  uint32 // relative to the write index
		}{{"ahead of what was written", 1}, {"backwards", 1<<32 - 101}, {"half way round", 1 << 31}} {
			t.Run(fmt.Sprintf("writer/%s/%#x", tt.name, start), func(t *testing.T) {
				q := ringWriter{ring: newRing(sliceMem(mem), 0, minRingData), w: start + 100, r: start}
				q.read.Store(q.w + tt.bad)
				for range 2 {
					if n, ring, err := q.put(make([]byte, 100)); !errors.Is(err, ErrCorrupt) || n != 0 || ring {
						t.Fatalf("got %d, %v, %v", n, ring, err)
					}
					q.read.Store(q.w)
				}
			})
		}
	}
}

// TestRegressRow48_ProducerIndexBeyondRing: a producer that claims more than
// the ring holds must not have anything processed twice.
func TestRegressRow48_ProducerIndexBeyondRing(t *testing.T) {
	e := windowEnds(t, smallWindow)
	e.guest.Write([]byte("once"))
	b := make([]byte, 16)
	if n, err := e.host.Read(b); err != nil || string(b[:n]) != "once" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	binary.LittleEndian.PutUint32(e.mem[ringWriteOff:], 4+minRingData+1)
	e.host.Kick(DoorbellWindow)
	for range 3 {
		if n, err := e.host.Read(b); n != 0 || !errors.Is(err, ErrCorrupt) {
			t.Fatalf("read %d, %v", n, err)
		}
	}
}

func FuzzWindow(f *testing.F) {
	f.Add(uint32(4), uint32(0), uint32(0), uint32(1), []byte("abcd"))
	f.Add(uint32(1<<31), uint32(77), uint32(1), uint32(1), []byte{})
	f.Add(uint32(minRingData), uint32(0), uint32(0xffffffff), uint32(0), bytes.Repeat([]byte{9}, 300))
	f.Fuzz(func(t *testing.T, write, read, rwait, wwait uint32, p []byte) {
		_, mem := testWindow(t, smallWindow)
		m := sliceMem(mem)
		if err := layoutWindow(m); err != nil {
			t.Fatal(err)
		}
		// The peer owns every word of the header and changes it at will.
		in := ringReader{ring: newRing(m, 0, minRingData)}
		out := ringWriter{ring: newRing(m, smallWindow/2, minRingData)}
		buf := make([]byte, 1000)
		total, lastW, lastR := 0, in.r, out.w
		for i := range 8 {
			in.write.Store(write + uint32(i)*17)
			out.read.Store(read + uint32(i)*5)
			in.wwait.Store(wwait)
			out.rwait.Store(rwait)
			n, _, err := in.get(buf)
			if err != nil && (!errors.Is(err, ErrCorrupt) || n != 0) {
				t.Fatalf("get: %d, %v", n, err)
			}
			if in.r-lastW != uint32(n) {
				t.Fatalf("get moved its index by %d for %d bytes", in.r-lastW, n)
			}
			lastW = in.r
			n, _, err = out.put(p)
			if err != nil && (!errors.Is(err, ErrCorrupt) || n != 0) {
				t.Fatalf("put: %d, %v", n, err)
			}
			if out.w-lastR != uint32(n) || n > len(p) {
				t.Fatalf("put moved its index by %d for %d of %d bytes", out.w-lastR, n, len(p))
			}
			lastR = out.w
			total += n
			if out.w-out.r > minRingData {
				t.Fatal("more in flight than the ring holds")
			}
		}
		// Data outside both rings is untouched: the page headers' unused part.
		for _, base := range []int{0, smallWindow / 2} {
			for i := 512; i < ringHeader; i++ {
				if mem[base+i] != 0 {
					t.Fatalf("wrote at %#x, outside the data", base+i)
				}
			}
		}
	})
}

// TestHammerNoLostWakeup moves bytes both ways at once in pieces of random
// size with random stalls on either side; a lost wake-up is a hang.
func TestHammerNoLostWakeup(t *testing.T) {
	for _, window := range []uint32{smallWindow, WindowSize} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			e := windowEnds(t, window)
			pieces := 150_000
			if testing.Short() {
				pieces = 20_000
			}
			watchdog := time.AfterFunc(60*time.Second, func() { panic("lost wake-up: the link hangs") })
			defer watchdog.Stop()
			// Nothing is read before the guest's first byte, as in real life.
			var wg sync.WaitGroup
			for i, d := range []struct {
				w io.Writer
				r io.Reader
			}{{e.guest, e.host}, {e.host, e.guest}} {
				var sums [2]uint64
				var part sync.WaitGroup
				part.Add(2)
				seed := uint64(i)
				var total int64
				sizes := rand.New(rand.NewPCG(seed, 9))
				for range pieces {
					total += int64(pieceSize(sizes))
				}
				go func() {
					defer part.Done()
					sizes, g, h := rand.New(rand.NewPCG(seed, 9)), rand.New(rand.NewPCG(seed, 7)), fnv.New64a()
					buf := make([]byte, 70_000)
					for range pieces {
						p := buf[:pieceSize(sizes)]
						for j := 0; j < len(p); j += 61 {
							p[j] = byte(g.Uint32())
						}
						h.Write(p)
						if _, err := d.w.Write(p); err != nil {
							t.Error(err)
							return
						}
						stall(g)
					}
					sums[0] = h.Sum64()
				}()
				go func() {
					defer part.Done()
					g, h := rand.New(rand.NewPCG(seed, 8)), fnv.New64a()
					buf := make([]byte, 70_000)
					for left := total; left > 0; {
						n, err := d.r.Read(buf[:min(left, int64(1+g.IntN(len(buf))))])
						if err != nil {
							t.Error(err)
							return
						}
						h.Write(buf[:n])
						left -= int64(n)
						stall(g)
					}
					sums[1] = h.Sum64()
				}()
				wg.Add(1)
				go func() {
					defer wg.Done()
					part.Wait()
					if sums[0] != sums[1] {
						t.Errorf("direction %d: bytes differ", i)
					}
				}()
			}
			wg.Wait()
		})
	}
}

func pieceSize(g *rand.Rand) int {
	switch g.IntN(200) {
	case 0:
		return 1 + g.IntN(66_000)
	case 1, 2, 3, 4:
		return 1 + g.IntN(3000)
	}
	return 1 + g.IntN(40)
}

func stall(g *rand.Rand) {
	switch n := g.IntN(4000); {
	case n == 0:
		time.Sleep(time.Duration(g.IntN(50)) * time.Microsecond)
	case n < 300:
		runtime.Gosched()
	}
}

// TestDoorbellsAreFew: 1 MiB in frames costs a doorbell only where the reader
// had gone to sleep.
func TestDoorbellsAreFew(t *testing.T) {
	e := windowEnds(t, WindowSize)
	// Fill without a reader: the first bytes ring (the host waits for them),
	// the rest finds no flag.
	frame := make([]byte, HeaderSize+1000)
	for range 400 {
		if _, err := e.guest.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	if e.doorbell != 1 {
		t.Errorf("%d doorbells for 400 frames to a busy reader, want 1", e.doorbell)
	}
	if _, err := io.ReadFull(e.host, make([]byte, 400*len(frame))); err != nil {
		t.Fatal(err)
	}
	if e.uart.rings != 0 {
		t.Errorf("%d rings to a guest that waits for nothing", e.uart.rings)
	}
}

func TestUARTStream(t *testing.T) {
	e := uartEnds(t)
	if got := e.host.Mode(); got != "uart" {
		t.Fatalf("mode %q", got)
	}
	up, down := bytes.Repeat([]byte("guest"), 5000), bytes.Repeat([]byte{0, 1, 0x55, 0x57, 255}, 3000)
	go e.guest.Write(up)
	go e.host.Write(down)
	for _, d := range []struct {
		r    io.Reader
		want []byte
	}{{e.host, up}, {e.guest, down}} {
		got := make([]byte, len(d.want))
		if _, err := io.ReadFull(d.r, got); err != nil || !bytes.Equal(got, d.want) {
			t.Fatalf("%v, equal %v", err, bytes.Equal(got, d.want))
		}
	}
}

// TestUARTFlood: a guest that sends without end while nobody reads must not
// grow our memory, and the violation latches.
func TestUARTFlood(t *testing.T) {
	e := uartEnds(t)
	for range maxUARTBacklog + 1000 {
		e.host.Transmit('x')
	}
	if n := cap(e.host.rx); n > 2*maxUARTBacklog {
		t.Errorf("buffer of %d bytes for a backlog of %d", n, maxUARTBacklog)
	}
	n, err := io.Copy(io.Discard, onlyReader{e.host})
	if n != maxUARTBacklog || !errors.Is(err, ErrCorrupt) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	e.host.Transmit('x')
	if _, err := e.host.Read(make([]byte, 1)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("not latched: %v", err)
	}
}

type onlyReader struct{ io.Reader }

func TestProbingIsNotAChoice(t *testing.T) {
	e := windowEnds(t, smallWindow)
	for b := range 256 {
		if b != UARTSelect {
			e.host.Transmit(byte(b))
		}
		if b != DoorbellWindow {
			e.host.Kick(byte(b))
		}
	}
	if e.host.Mode() != "" {
		t.Fatalf("mode %q after probing", e.host.Mode())
	}
	e.host.Kick(DoorbellWindow)
	e.host.Transmit(UARTSelect)
	if e.host.Mode() != "window" {
		t.Fatalf("mode %q", e.host.Mode())
	}
}

func TestCloseUnblocks(t *testing.T) {
	for _, mode := range []string{"none", "window", "uart"} {
		t.Run(mode, func(t *testing.T) {
			var c io.ReadWriteCloser
			switch mode {
			case "none":
				c = windowEnds(t, smallWindow).host
			case "window":
				e := windowEnds(t, smallWindow)
				e.host.Kick(DoorbellWindow)
				c = e.host
			case "uart":
				c = uartEnds(t).host
			}
			var wg sync.WaitGroup
			wg.Add(2)
			go func() {
				defer wg.Done()
				if _, err := c.Read(make([]byte, 1)); err != io.ErrClosedPipe {
					t.Errorf("Read: %v", err)
				}
			}()
			go func() {
				defer wg.Done()
				if _, err := c.Write(make([]byte, 1<<20)); err != io.ErrClosedPipe {
					t.Errorf("Write: %v", err)
				}
			}()
			time.Sleep(5 * time.Millisecond)
			c.Close()
			c.Close()
			wg.Wait()
		})
	}
}

func TestGuestRefusesForeignWindow(t *testing.T) {
	for name, spoil := range map[string]func([]byte){
		"magic":        func(m []byte) { m[0]++ },
		"second magic": func(m []byte) { m[smallWindow/2]++ },
		"size 0":       func(m []byte) { clear(m[4:8]) },
		"odd size":     func(m []byte) { m[4] = 1 },
		"large":        func(m []byte) { binary.LittleEndian.PutUint32(m[4:], minRingData*2) },
	} {
		t.Run(name, func(t *testing.T) {
			_, mem := testWindow(t, smallWindow)
			if err := layoutWindow(sliceMem(mem)); err != nil {
				t.Fatal(err)
			}
			spoil(mem)
			if _, err := NewGuestWindow(mem, nil, nil); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestParseCmdline(t *testing.T) {
	for _, tt := range []struct {
		in   string
		gpa  uint64
		size uint32
		ok   bool
		err  string
	}{
		{"console=ttyS0 hvpost.link=0xfe000000,0x200000 quiet\n", 0xfe000000, 0x200000, true, ""},
		{"quiet", 0, 0, false, ""},
		{"hvpost.link=", 0, 0, false, "address"},
		{"hvpost.link=0x1000", 0, 0, false, "size"},
		{"hvpost.link=0x1001,0x200000", 0, 0, false, "whole pages"},
		{"hvpost.link=0x1000,0", 0, 0, false, "whole pages"},
		{"hvpost.link=0x1000,0xfffff000", 0, 0, false, "whole pages"},
		{"hvpost.link=0xffffffffffff0000,0x1000", 0, 0, false, "address"},
	} {
		gpa, size, ok, err := ParseCmdline(tt.in)
		if gpa != tt.gpa || size != tt.size || ok != tt.ok || (err != nil) != (tt.err != "") ||
			err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %#x %#x %v %v", tt.in, gpa, size, ok, err)
		}
	}
	m, _ := testWindow(t, WindowSize)
	p, err := NewHostPort(HostPortConfig{Memory: m, GPA: testGPA, Size: WindowSize, UART: newFakeUART()})
	if err != nil {
		t.Fatal(err)
	}
	gpa, size, ok, err := ParseCmdline("quiet " + p.Cmdline())
	if gpa != uint64(testGPA) || size != WindowSize || !ok || err != nil {
		t.Errorf("Cmdline %q: %#x %#x %v %v", p.Cmdline(), gpa, size, ok, err)
	}
}
