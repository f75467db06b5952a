package vmbus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

// booted returns an env with a device whose channel the guest knows.
func booted(t testing.TB, d *device) (*env, *vmbustest.Channel) {
	t.Helper()
	e := newEnv(t)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, d.offer.SubChannel)
	e.check(err)
	return e, c
}

// Every size from one page to beyond the u16 in the header, whose length field
// wraps for more than 8190 pages; on a channel that is not open.
func TestGPADLSizes(t *testing.T) {
	e, c := booted(t, quiet(1))
	for _, n := range []int{1, 25, 26, 27, 54, 55, 82, 4096, 7936, 8189, 8190, 8191, 8192, 12000} {
		id, pfns, err := c.NewBuffer(e.ctx, n)
		if err != nil {
			t.Fatalf("%d pages: %v", n, err)
		}
		if len(pfns) != n {
			t.Fatal(len(pfns))
		}
		e.check(c.Teardown(e.ctx, id))
	}
	if s := e.stray(); len(s) != 0 {
		t.Error(s)
	}
}

// header posts a GPADL_HEADER with the given words of ranges.
func (e *env) header(relid proto.RelID, id proto.GPADLID, rangeBufLen, count uint16, words ...uint64) {
	e.t.Helper()
	b := proto.Encode(proto.GPADLHeader{RelID: relid, GPADL: id, RangeBufLen: rangeBufLen, RangeCount: count})
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	e.check(e.g.Post(e.ctx, b))
}

func (e *env) body(id proto.GPADLID, words ...uint64) {
	e.t.Helper()
	b := proto.Encode(proto.GPADLBody{GPADL: id})
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	e.check(e.g.Post(e.ctx, b))
}

// created returns the status of the answers for id, in order.
func (e *env) created(id proto.GPADLID) (st []uint32) {
	e.t.Helper()
	e.sync()
	for _, m := range e.stray() {
		if c, ok := m.(*proto.GPADLCreated); ok && c.GPADL == id {
			st = append(st, c.Status)
		}
	}
	return st
}

// Ranges that must be refused, each with exactly one answer.
func TestGPADLIsRefused(t *testing.T) {
	e, c := booted(t, quiet(1))
	relid := c.Offer.RelID
	const page = guest.PageSize
	id := proto.GPADLID(100)
	for name, f := range map[string]func(id proto.GPADLID){
		"no ranges":             func(id proto.GPADLID) { e.header(relid, id, 0, 0, page, 20) },
		"no bytes":              func(id proto.GPADLID) { e.header(relid, id, 16, 1, 0, 20) },
		"offset 4096":           func(id proto.GPADLID) { e.header(relid, id, 16, 1, page|page<<32, 20) },
		"offset 2^32-1":         func(id proto.GPADLID) { e.header(relid, id, 16, 1, 1|0xFFFFFFFF<<32, 20) },
		"page after RAM":        func(id proto.GPADLID) { e.header(relid, id, 16, 1, page, envRAM/page) },
		"page 2^52":             func(id proto.GPADLID) { e.header(relid, id, 16, 1, page, 1<<52) },
		"page 2^64-1":           func(id proto.GPADLID) { e.header(relid, id, 16, 1, page, ^uint64(0)) },
		"second page":           func(id proto.GPADLID) { e.header(relid, id, 24, 1, 2*page, 20, 1<<52+20) },
		"channel 0":             func(id proto.GPADLID) { e.header(0, id, 16, 1, page, 20) },
		"channel 2":             func(id proto.GPADLID) { e.header(2, id, 16, 1, page, 20) },
		"channel 2^32-1":        func(id proto.GPADLID) { e.header(0xFFFFFFFF, id, 16, 1, page, 20) },
		"second range":          func(id proto.GPADLID) { e.header(relid, id, 32, 2, page, 20, 0, 21) },
		"refused at the body":   func(id proto.GPADLID) { e.header(relid, id, 16, 1, 3*page, 20); e.body(id, 21, 1<<40) },
		"refused late, go on":   func(id proto.GPADLID) { e.header(relid, id, 16, 1, 3*page, 1<<40); e.body(id, 21, 22) },
		"4 GiB more than RAM":   func(id proto.GPADLID) { e.header(relid, id, 16, 1, 0xFFFFFFFF|4095<<32, 20, envRAM/page) },
		"range count, one page": func(id proto.GPADLID) { e.header(relid, id, 16, 65535, page, 20, 0, 0) },
	} {
		f(id)
		if st := e.created(id); len(st) != 1 || st[0] == 0 {
			t.Errorf("%s: answers %#x", name, st)
		}
		id++
	}
	if _, _, err := c.NewBuffer(e.ctx, 30); err != nil {
		t.Error(err)
	}
}

// Row 4: ids of GPADLs that were never finished. Their channel is released, or
// they are taken back, and their bodies come late; the id is then free again.
func TestRegressRow04_GPADLIDReusedMidCreation(t *testing.T) {
	d := quiet(1)
	e, c := booted(t, d)
	e.offer(quiet(2))
	other, err := e.g.Find(e.ctx, d.offer.Type, instance(2), 0)
	e.check(err)
	a, b := c.Offer.RelID, other.Offer.RelID
	const page = guest.PageSize

	// The same id while incomplete: on the same and on another channel.
	e.header(a, 7, 24, 1, 2*page, 20)
	e.header(a, 7, 24, 1, 2*page, 30)
	e.header(b, 7, 24, 1, 2*page, 30)
	if st := e.created(7); len(st) != 2 || st[0] == 0 || st[1] == 0 {
		t.Fatalf("duplicates of an incomplete id: %#x", st)
	}
	e.body(7, 21)
	if st := e.created(7); len(st) != 3 || st[2] != 0 {
		t.Fatalf("the first one: %#x", st)
	}
	// Complete: the id is taken on its channel only.
	e.header(a, 7, 16, 1, page, 40)
	e.header(b, 7, 16, 1, page, 40)
	if st := e.created(7); len(st) != 5 || st[3] == 0 || st[4] != 0 {
		t.Fatalf("duplicates of a complete id: %#x", st)
	}
	// Taken back while incomplete: the body that follows is nobody's.
	e.header(a, 8, 24, 1, 2*page, 20)
	e.post(proto.GPADLTeardown{RelID: a, GPADL: 8})
	e.body(8, 21)
	if st := e.created(8); len(st) != 0 {
		t.Fatalf("a GPADL taken back was created: %#x", st)
	}
	// Its channel goes away and is released.
	e.header(a, 9, 24, 1, 2*page, 20)
	e.check(e.srv.Remove(d))
	<-c.Rescinded()
	e.waitState(d, "absent")
	e.body(9, 21)
	if st := e.created(9); len(st) != 0 {
		t.Fatalf("a GPADL of a released channel was created: %#x", st)
	}
	e.header(b, 9, 24, 1, 2*page, 20)
	e.body(9, 21)
	if st := e.created(9); len(st) != 1 || st[0] != 0 {
		t.Fatalf("the id is not free: %#x", st)
	}
	// Nor does anything survive a new connection.
	e.header(b, 10, 24, 1, 2*page, 20)
	e.check(e.g.Unload(e.ctx))
	e.check(e.g.Boot(e.ctx))
	e.body(10, 21)
	if st := e.created(10); len(st) != 0 {
		t.Fatalf("a GPADL of the old connection was created: %#x", st)
	}
}

// Row 7: a channel that the host has rescinded still takes GPADLs. Linux does
// not cope with a failure there.
func TestRegressRow07_GPADLForRescindedChannel(t *testing.T) {
	d := quiet(1)
	e, c := booted(t, d)
	relid := c.Offer.RelID
	e.g.Close() // this guest is slow to let go of the channel
	e.check(e.srv.Remove(d))
	e.header(relid, 5, 24, 1, 2*guest.PageSize, 20)
	e.body(5, 21)
	if st := e.created(5); len(st) != 1 || st[0] != 0 {
		t.Fatalf("answers %#x", st)
	}
	n := len(e.stray())
	e.post(proto.OpenChannel{RelID: relid, RingGPADL: 5, DownstreamPage: 1}) // ignored
	e.post(proto.GPADLTeardown{RelID: relid, GPADL: 5})
	e.sync()
	if s := e.stray()[n:]; len(s) != 1 || *s[0].(*proto.GPADLTorndown) != (proto.GPADLTorndown{GPADL: 5}) {
		t.Fatalf("answers %v", s)
	}
	if e.state(d) != vmbus.StateRescinded {
		t.Error(e.state(d))
	}
	e.post(proto.RelIDReleased{RelID: relid})
	e.sync()
	if e.state(d) != "absent" {
		t.Error(e.state(d))
	}
}

// Row 19: a body for a GPADL that is complete, refused or unknown, and length
// fields that are too small for a range at all.
func TestRegressRow19_GPADLBodyForCompleteGPADL(t *testing.T) {
	e, c := booted(t, quiet(1))
	relid := c.Offer.RelID
	e.body(3, 1, 2, 3)
	e.header(relid, 3, 16, 1, guest.PageSize, 20)
	e.body(3, 21, 22)
	e.body(3)
	if st := e.created(3); len(st) != 1 || st[0] != 0 {
		t.Errorf("answers %#x", st)
	}
	for i, n := range []uint16{0, 1, 7, 8, 15, 0xFFFF} {
		id := proto.GPADLID(10 + i)
		e.header(relid, id, n, 1, 2*guest.PageSize, 20)
		e.body(id)
		e.body(id, 21)
		if st := e.created(id); len(st) != 1 || st[0] != 0 {
			t.Errorf("range_buflen %d: answers %#x", n, st)
		}
	}
	// A header that holds no range yet.
	e.header(relid, 20, 24, 1)
	e.body(20, 2*guest.PageSize)
	e.body(20, 20)
	e.body(20, 21)
	if st := e.created(20); len(st) != 1 || st[0] != 0 {
		t.Errorf("answers %#x", st)
	}
}

// Every teardown is answered exactly once, however wrong.
func TestTeardownAnswers(t *testing.T) {
	e, c := booted(t, quiet(1))
	e.offer(quiet(2))
	other, err := e.g.Find(e.ctx, proto.TypeBalloon, instance(2), 0)
	e.check(err)
	id, _, err := c.NewBuffer(e.ctx, 3)
	e.check(err)
	torn := func(relid proto.RelID, id proto.GPADLID, want int) {
		t.Helper()
		n := len(e.stray())
		e.post(proto.GPADLTeardown{RelID: relid, GPADL: id})
		e.sync()
		if s := e.stray()[n:]; len(s) != want {
			t.Errorf("teardown of %#x on channel %d: %v", uint32(id), relid, s)
		}
	}
	torn(c.Offer.RelID, 999, 1)
	torn(0xFFFFFFFF, 998, 1)
	torn(other.Offer.RelID, id, 0) // it would look as if c's were free
	torn(c.Offer.RelID, id, 1)
	torn(c.Offer.RelID, id, 1)
}

// GPADL_TORNDOWN waits until the device has let go, and until Serve returns
// for what it forgot to let go.
func TestTorndownWaitsForTheDevice(t *testing.T) {
	type request struct {
		id      proto.GPADLID
		release bool
		err     chan error
	}
	requests := make(chan request)
	proceed := make(chan struct{})
	d := quiet(1)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		var held *vmbus.GPADL
		for {
			select {
			case <-ctx.Done():
				<-proceed
				return nil
			case r := <-requests:
				if r.release {
					held.Release()
					r.err <- nil
					continue
				}
				g, err := ch.GPADL(r.id)
				if err == nil {
					held = g
				}
				r.err <- err
			}
		}
	}
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	do := func(id proto.GPADLID, release bool) error {
		r := request{id, release, make(chan error)}
		requests <- r
		return <-r.err
	}
	id, _, err := c.NewBuffer(e.ctx, 3)
	e.check(err)
	e.check(do(id, false))
	tornDown := func() bool {
		e.sync()
		for _, m := range e.stray() {
			if m, ok := m.(*proto.GPADLTorndown); ok && m.GPADL == id {
				return true
			}
		}
		return false
	}
	e.post(proto.GPADLTeardown{RelID: c.Offer.RelID, GPADL: id})
	e.post(proto.GPADLTeardown{RelID: c.Offer.RelID, GPADL: id})
	if tornDown() {
		t.Fatal("torn down while in use")
	}
	if err := do(id, false); !errors.Is(err, vmbus.ErrNoGPADL) {
		t.Errorf("a GPADL the guest wants back: %v", err)
	}
	if err := do(1, false); !errors.Is(err, vmbus.ErrNoGPADL) {
		t.Errorf("an unknown GPADL: %v", err)
	}
	if tornDown() {
		t.Fatal("torn down while in use")
	}
	e.check(do(0, true))
	if !tornDown() {
		t.Fatal("not torn down after Release")
	}
	// Held to the end of Serve, and the ring's GPADL with it.
	id, _, err = c.NewBuffer(e.ctx, 3)
	e.check(err)
	e.check(do(id, false))
	closed := make(chan error)
	e.post(proto.GPADLTeardown{RelID: c.Offer.RelID, GPADL: id})
	go func() { closed <- c.Close(e.ctx) }()
	e.waitState(d, vmbus.StateClosing)
	if tornDown() {
		t.Fatal("torn down before Serve returned")
	}
	select {
	case err := <-closed:
		t.Fatalf("rings given back before Serve returned: %v", err)
	default:
	}
	close(proceed)
	e.check(<-closed)
	if !tornDown() {
		t.Error("not torn down after Serve returned")
	}
}

// A GPADL read and written through its pages, which are scattered.
func TestGPADLAccess(t *testing.T) {
	result := make(chan error, 1)
	d := quiet(1)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		result <- func() error {
			var p ring.Packet
			if err := ch.Recv(ctx, &p); err != nil {
				return err
			}
			g, err := ch.GPADL(proto.GPADLID(p.TransactionID))
			if err != nil {
				return err
			}
			defer g.Release()
			if g.Size() != 3*guest.PageSize+900 || len(g.Ranges()) != 2 {
				return fmt.Errorf("%d bytes in %d ranges", g.Size(), len(g.Ranges()))
			}
			want := make([]byte, g.Size())
			for i := range want {
				want[i] = byte(i * 7)
			}
			if err := g.WriteAt(want, 0); err != nil {
				return err
			}
			for _, c := range []struct{ off, n int }{{0, 0}, {0, 1}, {4000, 200}, {12287, 2}, {12288, 900}, {100, 13000}, {13188, 0}} {
				got := make([]byte, c.n)
				if err := g.ReadAt(got, uint64(c.off)); err != nil || !bytes.Equal(got, want[c.off:c.off+c.n]) {
					return fmt.Errorf("%d bytes at %d: %v", c.n, c.off, err)
				}
				rs, err := g.Slice(nil, uint64(c.off), uint64(c.n))
				if err != nil {
					return err
				}
				sum := 0
				for _, r := range rs {
					sum += int(r.ByteCount)
					if err := ch.Memory().CheckRange(r); err != nil {
						return err
					}
				}
				if sum != c.n {
					return fmt.Errorf("slice of %d bytes has %d", c.n, sum)
				}
			}
			for _, c := range []struct{ off, n uint64 }{{g.Size(), 1}, {g.Size() + 1, 0}, {1, g.Size()}, {^uint64(0), 2}, {2, ^uint64(0)}} {
				if _, err := g.Slice(nil, c.off, c.n); !errors.Is(err, guest.ErrRange) {
					return fmt.Errorf("slice of %d at %d: %v", c.n, c.off, err)
				}
			}
			if err := g.ReadAt(make([]byte, 2), g.Size()-1); !errors.Is(err, guest.ErrRange) {
				return err
			}
			return nil
		}()
		<-ctx.Done()
		return nil
	}
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	pfns := e.g.Alloc(6)
	id, err := c.CreateGPADL(e.ctx, guest.PageRange{ByteCount: 3 * guest.PageSize, PFNs: pfns[:3]},
		guest.PageRange{ByteOffset: 4000, ByteCount: 900, PFNs: pfns[3:5]})
	e.check(err)
	e.check(c.Send(e.ctx, &ring.Packet{Type: proto.PacketInBand, TransactionID: uint64(id)}))
	e.check(<-result)
}

// The bounds of the GPADL table hold, and a guest that reached one is well
// again when it gives back.
func TestGPADLLimits(t *testing.T) {
	e, c := booted(t, quiet(1))
	relid := c.Offer.RelID
	var last proto.GPADLID
	for i := range vmbus.MaxPartialGPADLs + 1 {
		last = proto.GPADLID(1000 + i)
		e.header(relid, last, 24, 1, 2*guest.PageSize, 20)
	}
	if st := e.created(last); len(st) != 1 || st[0] == 0 {
		t.Errorf("%d incomplete GPADLs: %#x", vmbus.MaxPartialGPADLs+1, st)
	}
	for i := range vmbus.MaxPartialGPADLs {
		e.post(proto.GPADLTeardown{RelID: relid, GPADL: proto.GPADLID(1000 + i)})
	}
	// One page over the limit, announced at once.
	e.header(relid, 2000, 24, 1, 0xFFFFFFFF, 20)
	e.header(relid, 2001, 24, 1, 0xFFFFFFFF, 20)
	if st := e.created(2001); len(st) != 0 {
		t.Errorf("4 GiB announced beside 4 GiB announced, of which one page arrived: %#x", st)
	}
	e.post(proto.GPADLTeardown{RelID: relid, GPADL: 2000})
	e.post(proto.GPADLTeardown{RelID: relid, GPADL: 2001})
	for i := range vmbus.MaxGPADLs {
		e.header(relid, proto.GPADLID(10000+i), 16, 1, guest.PageSize, 20)
	}
	e.header(relid, 2002, 16, 1, guest.PageSize, 20)
	if st := e.created(2002); len(st) != 1 || st[0] == 0 {
		t.Errorf("GPADL number %d: %#x", vmbus.MaxGPADLs+1, st)
	}
	e.post(proto.GPADLTeardown{RelID: relid, GPADL: 10000})
	e.header(relid, 2003, 16, 1, guest.PageSize, 20)
	if st := e.created(2003); len(st) != 1 || st[0] != 0 {
		t.Errorf("after one was given back: %#x", st)
	}
}

// FuzzGPADL posts header and bodies as the fuzzer cuts them. There is one
// answer at most per header, and the table stays within its bounds.
func FuzzGPADL(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 16, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 255, 15, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0})
	f.Add(bytes.Repeat([]byte{255}, 300))
	d := quiet(1)
	e, c := booted(f, d)
	f.Fuzz(func(t *testing.T, b []byte) {
		const id = 42
		n := len(e.g.Stray())
		msg := proto.Encode(proto.GPADLHeader{RelID: c.Offer.RelID, GPADL: id})
		if len(b) >= 8 {
			copy(msg[16:20], b[4:8]) // length and count
			b = b[8:]
		}
		for limit := 220; ; limit = 224 {
			k := min(limit, len(b))
			if st := e.raw(1, append(msg, b[:k]...)); st != hv.StatusSuccess && st != hv.StatusInsufficientBuffers {
				t.Fatal(st)
			}
			if b = b[k:]; len(b) == 0 {
				break
			}
			msg = proto.Encode(proto.GPADLBody{GPADL: id})
		}
		e.t = t
		e.post(proto.GPADLTeardown{RelID: c.Offer.RelID, GPADL: id})
		e.sync()
		created, torn := 0, 0
		for _, m := range e.g.Stray()[n:] {
			switch m := m.(type) {
			case *proto.GPADLCreated:
				if m.GPADL == id {
					created++
				}
			case *proto.GPADLTorndown:
				torn++
			default:
				t.Fatalf("the server sent %T", m)
			}
		}
		if created > 1 || torn != 1 {
			t.Fatalf("%d answers to the header, %d to the teardown", created, torn)
		}
		e.g.ClearStray()
	})
}

// The pages of all GPADLs together are bounded, by what arrived.
func TestGPADLPageLimit(t *testing.T) {
	e, c := booted(t, quiet(1))
	pfns := make([]uint64, 8190)
	for i := range pfns {
		pfns[i] = uint64(600 + i) // the same pages again and again
	}
	r := guest.PageRange{ByteCount: uint32(len(pfns)) * guest.PageSize, PFNs: pfns}
	var ids []proto.GPADLID
	for {
		id, err := c.CreateGPADL(e.ctx, r)
		if err != nil {
			e.refused(err, proto.MsgGPADLCreated)
			break
		}
		ids = append(ids, id)
	}
	if want := vmbus.MaxGPADLPages / (len(pfns) + proto.RangeCost); len(ids) != want {
		t.Errorf("%d GPADLs of %d pages, want %d", len(ids), len(pfns), want)
	}
	e.check(c.Teardown(e.ctx, ids[0]))
	if _, err := c.CreateGPADL(e.ctx, r); err != nil {
		t.Errorf("after one was given back: %v", err)
	}
}

// Row 32: what an open channel rests on cannot be changed under it. Its ring
// GPADL is given back only after the close, whenever the guest asks.
func TestRegressRow32_RingGPADLTornDownWhileOpen(t *testing.T) {
	d := echo(1)
	e, c := booted(t, d)
	id, _, err := c.NewBuffer(e.ctx, 8)
	e.check(err)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	ringID := id + 1 // Open made the next one
	e.post(proto.GPADLTeardown{RelID: c.Offer.RelID, GPADL: ringID})
	e.header(c.Offer.RelID, ringID, 16, 1, guest.PageSize, 20) // nor replaced
	if st := e.created(ringID); len(st) != 1 || st[0] == 0 {
		t.Fatalf("a ring was replaced under its channel: %#x", st)
	}
	for i := range uint64(10) {
		if b, err := c.Request(e.ctx, i, []byte("still up")); err != nil || string(b) != "still up" {
			t.Fatal(string(b), err)
		}
	}
	torn := func() (n int) {
		e.sync()
		for _, m := range e.stray() {
			if m, ok := m.(*proto.GPADLTorndown); ok && m.GPADL == ringID {
				n++
			}
		}
		return n
	}
	if torn() != 0 {
		t.Fatal("the rings were given back while open")
	}
	e.post(proto.CloseChannel{RelID: c.Offer.RelID})
	e.waitState(d, vmbus.StateOffered)
	if torn() != 1 {
		t.Errorf("%d answers to the teardown", torn())
	}
}
