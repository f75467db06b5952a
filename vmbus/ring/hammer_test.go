package ring

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// Two goroutines, each sleeping when the protocol says it may, pass packets
// that carry their number. A lost wake-up ends in the time-out, a lost, torn
// or doubled packet in a wrong number.
func TestHammerTwoEnds(t *testing.T) {
	mem := newMemory(t)
	for name, pfns := range map[string][]uint64{"smallest": contiguous(2), "scattered": scattered(9)} {
		t.Run(name, func(t *testing.T) {
			if err := Format(mem, pfns); err != nil {
				t.Fatal(err)
			}
			data, room := make(chan struct{}, 1), make(chan struct{}, 1)
			poke := func(c chan struct{}) func() {
				return func() {
					select {
					case c <- struct{}{}:
					default:
					}
				}
			}
			w, err := NewWriter(mem, pfns, poke(data))
			if err != nil {
				t.Fatal(err)
			}
			r, err := NewReader(mem, pfns, 0, poke(room))
			if err != nil {
				t.Fatal(err)
			}
			const total = 60000
			stop := time.AfterFunc(30*time.Second, func() { panic("a wake-up was lost") })
			defer stop.Stop()
			var wg sync.WaitGroup
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(1, 2))
				buf := make([]byte, 600)
				for i := range uint64(total) {
					p := inBand(i, buf[:8+rnd.IntN(592)])
					binary.LittleEndian.PutUint64(p.Payload, i*0x9E3779B97F4A7C15)
					err := w.Put(p)
					for err == ErrFull {
						w.Publish()
						fits, _ := w.Await(p)
						if !fits {
							<-room
						}
						err = w.Put(p)
					}
					if err == nil && rnd.IntN(3) > 0 {
						err = w.Publish()
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
				w.Publish()
			})
			wg.Go(func() {
				var p Packet
				for i := uint64(0); i < total; {
					ok, err := r.Next(&p)
					if err != nil {
						t.Error(err)
						return
					}
					if ok {
						if p.TransactionID != i || binary.LittleEndian.Uint64(p.Payload) != i*0x9E3779B97F4A7C15 {
							t.Errorf("packet %d came as %d", i, p.TransactionID)
							return
						}
						i++
						continue
					}
					if more, _ := r.Unmask(); !more {
						<-data
					}
					r.Mask()
				}
			})
			wg.Wait()
		})
	}
}

// A hostile peer rewrites every word of the header and the packets while both
// ends work. Nothing may panic or hang, every error is ErrCorrupt, and what
// comes out is well formed. Ends that latched are opened again.
func TestHammerHostileHeader(t *testing.T) {
	mem := newMemory(t)
	pfns := contiguous(3)
	if err := Format(mem, pfns); err != nil {
		t.Fatal(err)
	}
	d, h, err := open(mem, pfns)
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(3, 4))
		words := []*atomic.Uint32{h.write, h.read, h.mask, h.pending, h.features}
		good := (&Packet{Type: proto.PacketGPADirect, Ranges: []guest.PageRange{{ByteCount: 4096, PFNs: []uint64{1}}}, Payload: make([]byte, 64)}).appendHead(nil)
		for !stop.Load() {
			x := rnd.Uint32()
			if x&1 == 0 {
				x = x >> 8 & 0x1FF8 // mostly legal indices, or every end latches at once
			}
			words[rnd.IntN(len(words))].Store(x)
			d.writeAt(good, rnd.Uint32()%(d.size/8)*8)
		}
	})
	latches, packets := 0, 0
	end := time.Now().Add(700 * time.Millisecond)
	for time.Now().Before(end) {
		r, errR := NewReader(mem, pfns, 1000, func() {})
		w, errW := NewWriter(mem, pfns, func() {})
		if errR != nil || errW != nil {
			latches++
			continue
		}
		for n := 0; n < 10000 && errR == nil && errW == nil; n++ {
			var p Packet
			var ok bool
			if ok, errR = r.Next(&p); ok {
				packets++
				if p.Size() > 1008 {
					t.Fatalf("packet of %d bytes", p.Size())
				}
				for _, pr := range p.Ranges {
					if !pr.Valid() {
						t.Fatalf("range %+v", pr)
					}
				}
			}
			r.Mask()
			r.Unmask()
			if errW = w.Write(inBand(1, make([]byte, 100))); errW == ErrFull {
				_, errW = w.Await(inBand(1, make([]byte, 100)))
			}
		}
		for _, err := range []error{errR, errW} {
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error of another kind: %v", err)
			}
		}
		latches++
	}
	stop.Store(true)
	wg.Wait()
	if latches == 0 || packets == 0 {
		t.Errorf("%d latches, %d packets: the test tested nothing", latches, packets)
	}
}

// BenchmarkRing: two goroutines, one ring, signals through a channel.
func BenchmarkRing(b *testing.B) {
	for _, c := range []struct {
		name    string
		payload int
		batch   int
	}{{"64B", 64, 1}, {"64B-batch16", 64, 16}, {"16KiB", 16 << 10, 1}} {
		b.Run(c.name, func(b *testing.B) {
			mem, err := guest.New(guest.Region{Base: 0, Size: 1 << 20})
			if err != nil {
				b.Fatal(err)
			}
			defer mem.Close()
			pfns := contiguous(128)
			if err := Format(mem, pfns); err != nil {
				b.Fatal(err)
			}
			data, room := make(chan struct{}, 1), make(chan struct{}, 1)
			wake := func(c chan struct{}) func() {
				return func() {
					select {
					case c <- struct{}{}:
					default:
					}
				}
			}
			w, err := NewWriter(mem, pfns, wake(data))
			if err != nil {
				b.Fatal(err)
			}
			r, err := NewReader(mem, pfns, 0, wake(room))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(c.payload))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			wg.Go(func() {
				p := inBand(1, make([]byte, c.payload))
				for i := range b.N {
					for {
						err := w.Put(p)
						if err == nil {
							break
						}
						w.Publish()
						if fits, _ := w.Await(p); !fits {
							<-room
						}
					}
					if i%c.batch == 0 {
						w.Publish()
					}
				}
				w.Publish()
			})
			var p Packet
			for i := 0; i < b.N; {
				ok, err := r.Next(&p)
				if err != nil {
					b.Fatal(err)
				}
				if ok {
					i++
					continue
				}
				if more, _ := r.Unmask(); !more {
					<-data
				}
				r.Mask()
			}
			wg.Wait()
		})
	}
}
