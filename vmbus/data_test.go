package vmbus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

func guestPage(pfn uint64) guest.GPA { return guest.GPA(pfn << guest.PageShift) }

// Numbered packets both ways at once through rings of one data page, both ends
// sleeping whenever they may.
func TestHammerBothDirections(t *testing.T) {
	const total = 20000
	d := quiet(1)
	result := make(chan error, 2)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		var wg sync.WaitGroup
		wg.Go(func() {
			var p ring.Packet
			for i := range uint64(total) {
				if err := ch.Recv(ctx, &p); err != nil {
					result <- err
					return
				}
				if p.TransactionID != i || binary.LittleEndian.Uint64(p.Payload) != ^i {
					result <- errors.New("a packet of the guest is lost, torn or doubled")
					return
				}
			}
			result <- nil
		})
		rnd := rand.New(rand.NewPCG(7, 8))
		buf := make([]byte, 800)
		for i := range uint64(total) {
			p := ring.Packet{Type: proto.PacketInBand, TransactionID: i, Payload: buf[:8+rnd.IntN(792)]}
			binary.LittleEndian.PutUint64(p.Payload, ^i)
			if err := ch.Send(ctx, &p); err != nil {
				result <- err
				break
			}
		}
		result <- nil
		wg.Wait()
		<-ctx.Done()
		return nil
	}
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{Out: 2, In: 2}))
	var wg sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(9, 10))
		buf := make([]byte, 800)
		for i := range uint64(total) {
			p := ring.Packet{Type: proto.PacketInBand, TransactionID: i, Payload: buf[:8+rnd.IntN(792)]}
			binary.LittleEndian.PutUint64(p.Payload, ^i)
			if err := c.Send(e.ctx, &p); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var p ring.Packet
	for i := range uint64(total) {
		e.check(c.Recv(e.ctx, &p))
		if p.TransactionID != i || binary.LittleEndian.Uint64(p.Payload) != ^i {
			t.Fatalf("packet %d of the host came as %d", i, p.TransactionID)
		}
	}
	wg.Wait()
	for range 2 {
		e.check(<-result)
	}
}

// GPA-direct packets arrive with their pages; transfer pages go out with
// theirs. Neither a page outside RAM nor a range over the ring itself is the
// ring's business.
func TestExternalData(t *testing.T) {
	type got struct {
		ranges []guest.PageRange
		err    error
	}
	seen := make(chan got, 10)
	d := quiet(1)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		var p ring.Packet
		for {
			if err := ch.Recv(ctx, &p); err != nil {
				return err
			}
			g := got{}
			for _, r := range p.Ranges {
				r.PFNs = append([]uint64(nil), r.PFNs...)
				g.ranges = append(g.ranges, r)
				if err := ch.Memory().CheckRange(r); err != nil {
					g.err = err
				}
			}
			seen <- g
			if ok, err := ch.TrySend(&ring.Packet{Type: proto.PacketTransferPages, TransactionID: p.TransactionID, TransferSet: 0xCAFE,
				Transfers: []proto.TransferRange{{ByteCount: 10, ByteOffset: 20}}, Payload: make([]byte, 40)}); !ok || err != nil {
				return err
			}
		}
	}
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	for i, r := range [][]guest.PageRange{
		{{ByteOffset: 100, ByteCount: 8192, PFNs: []uint64{20, 30, 21}}},
		{{ByteCount: 4096, PFNs: []uint64{20}}, {ByteOffset: 4095, ByteCount: 2, PFNs: []uint64{7, 9}}},
		{{ByteCount: 4096, PFNs: []uint64{envRAM / guest.PageSize}}},
		{{ByteCount: 4096, PFNs: []uint64{^uint64(0)}}},
		{{ByteCount: 4096, PFNs: c.Rings()[:1]}},
	} {
		e.check(c.Send(e.ctx, &ring.Packet{Type: proto.PacketGPADirect, Flags: 1, TransactionID: uint64(i), Ranges: r}))
		g := <-seen
		if (g.err != nil) != (i == 2 || i == 3) || len(g.ranges) != len(r) {
			t.Errorf("packet %d: %+v", i, g)
		}
		for j := range g.ranges {
			if g.ranges[j].ByteCount != r[j].ByteCount || len(g.ranges[j].PFNs) != len(r[j].PFNs) {
				t.Errorf("packet %d, range %d: %+v", i, j, g.ranges[j])
			}
		}
		var p ring.Packet
		e.check(c.Recv(e.ctx, &p))
		if p.TransferSet != 0xCAFE || len(p.Transfers) != 1 || p.Transfers[0].ByteOffset != 20 || p.TransactionID != uint64(i) {
			t.Errorf("%+v", p)
		}
	}
}

// The device's own limits: packets larger than MaxPacket end its channel,
// larger than the ring are an error of its own.
func TestPacketLimits(t *testing.T) {
	tooBig := make(chan error, 1)
	d := quiet(1)
	d.offer.MaxPacket = 128
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		_, err := ch.TrySend(&ring.Packet{Type: proto.PacketInBand, Payload: make([]byte, 1<<16)})
		tooBig <- err
		return ch.Recv(ctx, &ring.Packet{})
	}
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	if err := <-tooBig; !errors.Is(err, ring.ErrTooBig) {
		t.Errorf("64 KiB into 12: %v", err)
	}
	e.check(c.Send(e.ctx, &ring.Packet{Type: proto.PacketInBand, Payload: make([]byte, 120)}))
	e.waitState(d, vmbus.StateStopped)
}

// A device that waits for room in its ring, or for packets, ends when its
// channel is closed, also when the guest never lets the ring run empty.
func TestCancelWhileWaiting(t *testing.T) {
	d := quiet(1)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		var wg sync.WaitGroup
		wg.Go(func() {
			for ch.Send(ctx, &ring.Packet{Type: proto.PacketInBand, Payload: make([]byte, 64)}) == nil {
			}
		})
		var p ring.Packet
		for ch.Recv(ctx, &p) == nil {
		}
		wg.Wait()
		return nil
	}
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			if err := c.Writer().Write(&ring.Packet{Type: proto.PacketInBand}); err != nil && err != ring.ErrFull {
				t.Error(err)
				return
			}
		}
	})
	time.Sleep(20 * time.Millisecond)
	e.post(proto.CloseChannel{RelID: c.Offer.RelID})
	e.waitState(d, vmbus.StateOffered)
	stop.Store(true)
	wg.Wait()
}

// A guest that scribbles over its rings and headers while a device works loses
// that channel only.
func TestHammerHostileRings(t *testing.T) {
	good, bad := echo(1), echo(2)
	e := newEnv(t)
	e.offer(good)
	e.offer(bad)
	e.check(e.g.Boot(e.ctx))
	ok := e.open(good)
	victim := e.open(bad)
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(11, 12))
		junk := make([]byte, 256)
		for !stop.Load() {
			pfns := victim.Rings()
			if len(pfns) == 0 {
				continue
			}
			for i := range junk {
				junk[i] = byte(rnd.Uint32())
			}
			n := rnd.IntN(16)
			e.mem.WriteAt(junk[:4*n], guestPage(pfns[rnd.IntN(len(pfns))])+guest.GPA(4*rnd.IntN(32)))
			e.fake.Signal(0x2000 | 2)
		}
	})
	end := time.Now().Add(700 * time.Millisecond)
	for i := uint64(0); time.Now().Before(end); i++ {
		want := bytes.Repeat([]byte{byte(i)}, 64)
		if b, err := ok.Request(e.ctx, i, want); err != nil || !bytes.Equal(b, want) {
			t.Fatalf("the other channel suffers: %v", err)
		}
		if e.state(bad) == vmbus.StateStopped && i%16 == 0 {
			// Close and open again, so that more than the first moment is tested.
			e.post(proto.CloseChannel{RelID: victim.Offer.RelID})
			e.sync()
			if err := victim.Open(e.ctx, vmbustest.OpenOptions{}); err != nil && victim.Writer() == nil {
				t.Fatal(err)
			}
			e.g.ClearStray()
		}
	}
	stop.Store(true)
	wg.Wait()
	if _, served := bad.counts(); served == 0 {
		t.Error("the hostile channel never ended")
	}
}

// BenchmarkEcho is the round trip of a request and its completion through a
// server and a device, in batches as a driver with a queue makes them.
func BenchmarkEcho(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "depth1", 32: "depth32"}[depth], func(b *testing.B) {
			d := echo(1)
			e, c := booted(b, d)
			e.ctx = context.Background()
			e.check(c.Open(e.ctx, vmbustest.OpenOptions{Out: 32, In: 32}))
			payload := make([]byte, 64)
			b.ReportAllocs()
			b.ResetTimer()
			var p ring.Packet
			req := ring.Packet{Type: proto.PacketInBand, Flags: 1, Payload: payload}
			for sent, done := 0, 0; done < b.N; {
				for ; sent < b.N && sent-done < depth; sent++ {
					if err := c.Send(e.ctx, &req); err != nil {
						b.Fatal(err)
					}
				}
				if err := c.Recv(e.ctx, &p); err != nil {
					b.Fatal(err)
				}
				done++
			}
		})
	}
}
