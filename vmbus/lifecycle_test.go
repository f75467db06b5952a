package vmbus_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

// Offers before the server's guest is there, at its wish, and after; in a
// stable order, each once.
func TestOffers(t *testing.T) {
	e := newEnv(t)
	for i := range byte(5) {
		e.offer(quiet(i))
	}
	e.check(e.g.Connect(e.ctx))
	e.offer(quiet(5))
	if n := len(e.g.Channels()); n != 0 {
		t.Fatalf("%d offers nobody asked for", n)
	}
	e.check(e.g.RequestOffers(e.ctx))
	e.offer(quiet(6)) // hot
	if _, err := e.g.Find(e.ctx, proto.TypeBalloon, instance(6), 0); err != nil {
		t.Fatal(err)
	}
	for id, c := range e.g.Channels() {
		o := c.Offer
		if o.Instance != instance(byte(id-1)) || o.RelID != id || o.MonitorID != proto.MonitorNone || o.Monitored != 0 || o.ConnectionID != 0x2000|uint32(id) {
			t.Errorf("offer %+v", o)
		}
	}
	if err := e.srv.Offer(quiet(3)); !errors.Is(err, vmbus.ErrDuplicate) {
		t.Errorf("the same instance again: %v", err)
	}
	sub := quiet(9)
	sub.offer.SubChannel = 1
	if err := e.srv.Offer(sub); err == nil {
		t.Error("a sub-channel without its primary")
	}
	if err := e.srv.Remove(quiet(3)); !errors.Is(err, vmbus.ErrNotOffer) {
		t.Errorf("removal of a device nobody offered: %v", err)
	}
	e.sync()
	if s := e.stray(); len(s) != 0 {
		t.Error(s)
	}
}

// 2047 channels fit, offers for all are delivered, and one more is refused.
func TestAllChannels(t *testing.T) {
	e := newEnv(t)
	devs := make([]*device, vmbus.MaxChannels+1)
	for i := range devs {
		devs[i] = quiet(0)
		devs[i].offer.Instance = proto.GUID{0: byte(i), 1: byte(i >> 8)}
	}
	for _, d := range devs[:vmbus.MaxChannels] {
		e.offer(d)
	}
	if err := e.srv.Offer(devs[vmbus.MaxChannels]); !errors.Is(err, vmbus.ErrNoChannel) {
		t.Errorf("one channel too many: %v", err)
	}
	e.check(e.g.Boot(e.ctx))
	if n := len(e.g.Channels()); n != vmbus.MaxChannels {
		t.Errorf("%d offers", n)
	}
	c := e.open(devs[2046])
	if c.Offer.RelID != 2047 {
		t.Errorf("relid %d", c.Offer.RelID)
	}
	e.check(c.Close(e.ctx))
	e.check(e.srv.Remove(devs[7]))
	e.waitState(devs[7], "absent")
	e.offer(devs[vmbus.MaxChannels])
	if c, err := e.g.Find(e.ctx, proto.TypeBalloon, devs[vmbus.MaxChannels].offer.Instance, 0); err != nil || c.Offer.RelID != 8 {
		t.Error(c, err)
	}
}

// A removed device's channel is closed by the guest, its relid given back, and
// the same device can be offered again.
func TestRemoveAndOfferAgain(t *testing.T) {
	e := newEnv(t)
	d := echo(1)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	for range 20 {
		c := e.open(d)
		if _, err := c.Request(e.ctx, 1, []byte("before")); err != nil {
			t.Fatal(err)
		}
		e.check(e.srv.Remove(d))
		if serving, _ := d.counts(); serving != 0 {
			t.Fatal("still serving after Remove")
		}
		if err := e.srv.Remove(d); !errors.Is(err, vmbus.ErrNotOffer) {
			t.Fatalf("second Remove: %v", err)
		}
		<-c.Rescinded()
		e.offer(d) // at once: the guest hears of it when it has let go of the old one
		if _, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, 0); err != nil {
			t.Fatal(err)
		}
	}
	e.sync()
	if s := e.stray(); len(s) != 0 {
		t.Errorf("stray: %v", s)
	}
}

// Row 29: a channel is rescinded once, whoever asks how often at the same time.
func TestRegressRow29_DuplicateRescind(t *testing.T) {
	e := newEnv(t)
	e.check(e.g.Boot(e.ctx))
	for range 30 {
		d := echo(1)
		serve := d.serve
		d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
			serve(ctx, ch)
			return vmbus.ErrRescind // the device itself wants it, too
		}
		e.offer(d)
		c := e.open(d)
		var wg sync.WaitGroup
		var removed atomic.Int32
		for range 4 {
			wg.Go(func() {
				if err := e.srv.Remove(d); err == nil {
					removed.Add(1)
				} else if !errors.Is(err, vmbus.ErrNotOffer) {
					t.Error(err)
				}
			})
		}
		wg.Go(func() { c.Close(e.ctx) })
		wg.Wait()
		<-c.Rescinded()
		if removed.Load() > 1 {
			t.Errorf("%d removals succeeded", removed.Load())
		}
		e.waitState(d, "absent")
	}
	e.sync()
	for _, m := range e.stray() {
		if _, ok := m.(*proto.RescindChannelOffer); ok {
			t.Errorf("a second %v", m)
		}
	}
}

// A device that returns ErrRescind is taken away, as hv_sock connections are.
func TestDeviceRescindsItself(t *testing.T) {
	e := newEnv(t)
	d := echo(1)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		var p ring.Packet
		if err := ch.Recv(ctx, &p); err != nil {
			return err
		}
		return vmbus.ErrRescind
	}
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c := e.open(d)
	e.check(c.Send(e.ctx, &ring.Packet{Type: proto.PacketInBand}))
	<-c.Rescinded()
	e.waitState(d, "absent")
	if err := e.srv.Remove(d); !errors.Is(err, vmbus.ErrNotOffer) {
		t.Error(err)
	}
}

// The relid of a rescinded channel stays taken until the guest has released
// it, and a release without a rescind is nothing.
func TestRelIDStaysTaken(t *testing.T) {
	e := newEnv(t)
	d := quiet(1)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c := e.open(d)
	e.g.Close() // handles no rescinds
	e.post(proto.RelIDReleased{RelID: c.Offer.RelID})
	e.sync()
	if e.state(d) != vmbus.StateOpen {
		t.Fatal(e.state(d))
	}
	e.check(e.srv.Remove(d))
	again := quiet(1)
	e.offer(again)
	e.sync()
	st := e.srv.Status().Channels
	if len(st) != 2 || st[0].State != vmbus.StateRescinded || st[1].State != vmbus.StatePending {
		t.Fatalf("%+v", st)
	}
	e.post(proto.CloseChannel{RelID: c.Offer.RelID})
	e.post(proto.RelIDReleased{RelID: c.Offer.RelID})
	e.sync()
	st = e.srv.Status().Channels
	if len(st) != 1 || st[0].State != vmbus.StateOffered || st[0].RelID == c.Offer.RelID {
		t.Fatalf("%+v", st)
	}
}

// Sub-channels: offered by the device, opened like channels, gone with the
// primary, offered anew at the next opening.
func TestSubChannels(t *testing.T) {
	const subs = 3
	e := newEnv(t)
	d := echo(1)
	sub, serve := echo(0), d.serve
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		for i := range uint16(subs) {
			if err := ch.OfferSub(i+1, sub.Serve); err != nil {
				return err
			}
		}
		if err := ch.OfferSub(1, sub.Serve); !errors.Is(err, vmbus.ErrDuplicate) {
			return fmt.Errorf("sub-channel 1 again: %v", err)
		}
		err := serve(ctx, ch)
		if err := ch.OfferSub(9, sub.Serve); err == nil {
			return errors.New("offered a sub-channel of a closed channel")
		}
		return err
	}
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	for round := range 10 {
		c := e.open(d)
		var chans []*vmbustest.Channel
		for i := range uint16(subs) {
			s, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, i+1)
			e.check(err)
			e.check(s.Open(e.ctx, vmbustest.OpenOptions{}))
			if b, err := s.Request(e.ctx, uint64(i), []byte("sub-chan")); err != nil || string(b) != "sub-chan" {
				t.Fatal(string(b), err)
			}
			chans = append(chans, s)
		}
		if round%2 == 0 { // Linux closes sub-channels first, but need not
			for _, s := range chans {
				e.check(s.Close(e.ctx))
			}
		}
		e.check(c.Close(e.ctx))
		for _, s := range chans {
			<-s.Rescinded()
		}
		for len(e.g.Channels()) != 1 {
			if e.ctx.Err() != nil {
				t.Fatal("sub-channels stay")
			}
			time.Sleep(time.Millisecond)
		}
		e.waitState(d, vmbus.StateOffered)
	}
	// Removal takes sub-channels first.
	c := e.open(d)
	s, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, subs)
	e.check(err)
	e.check(s.Open(e.ctx, vmbustest.OpenOptions{}))
	e.check(e.srv.Remove(d))
	<-c.Rescinded()
	select {
	case <-s.Rescinded():
	default:
		t.Error("the primary was rescinded before its sub-channel")
	}
	for len(e.srv.Status().Channels) != 0 {
		if e.ctx.Err() != nil {
			t.Fatalf("%+v", e.srv.Status())
		}
		time.Sleep(time.Millisecond)
	}
	// And with nothing open any more.
	for _, s := range e.stray() {
		t.Errorf("stray %v", s)
	}
}

func TestOfferSubMisuseIsABug(t *testing.T) {
	e := newEnv(t)
	got := make(chan any, 1)
	d := quiet(1)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		defer func() { got <- recover() }()
		return ch.OfferSub(0, nil)
	}
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	e.open(d)
	if <-got == nil {
		t.Error("a sub-channel with index 0")
	}
}

// Row 6: reset and unload while a channel is being opened, its result stuck
// behind a full message slot. Neither may wait for the result.
func TestRegressRow06_ResetWhileOpening(t *testing.T) {
	for name, end := range map[string]func(e *env){
		"reset": func(e *env) { e.srv.Reset() },
		"unload": func(e *env) {
			e.raw(1, proto.Encode(proto.Unload{}))
			e.fake.Unhold()
		},
		"contact": func(e *env) {
			e.raw(4, proto.Encode(proto.InitiateContact{Version: proto.Version5_3, Interrupt: 2}))
			e.fake.Unhold()
		},
		"close": func(e *env) { e.srv.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			e, c := booted(t, quiet(1))
			id, pfns, err := c.NewBuffer(e.ctx, 8)
			e.check(err)
			e.check(ring.Format(e.mem, pfns[:4]))
			e.check(ring.Format(e.mem, pfns[4:]))
			e.fake.Hold()
			// Answers enough to fill the port, and one for the queue behind it.
			for i := range 17 {
				e.raw(1, proto.Encode(proto.GPADLHeader{RelID: 9, GPADL: proto.GPADLID(i)}))
			}
			e.srv.Status()
			// A request that the server has read already, or will not read.
			e.raw(1, proto.Encode(proto.OpenChannel{RelID: c.Offer.RelID, RingGPADL: id, DownstreamPage: 4}))
			done := make(chan struct{})
			go func() { end(e); close(done) }()
			select {
			case <-done:
			case <-time.After(5 * time.Second):
				t.Fatal("hangs")
			}
			e.fake.Unhold()
			if name == "close" {
				return
			}
			for e.srv.Status().Channels[0].State != vmbus.StatePending {
				if e.ctx.Err() != nil {
					t.Fatalf("%+v", e.srv.Status())
				}
				time.Sleep(time.Millisecond)
			}
			e.g.Kexec()
			e.check(e.g.Boot(e.ctx))
		})
	}
}

// The same, with the open surely taken and its result surely in the server's
// own queue when the reset comes.
func TestResetWithOpenResultQueued(t *testing.T) {
	d := quiet(1)
	e, c := booted(t, d)
	id, pfns, err := c.NewBuffer(e.ctx, 8)
	e.check(err)
	e.check(ring.Format(e.mem, pfns[:4]))
	e.check(ring.Format(e.mem, pfns[4:]))
	e.fake.Hold()
	for i := range 16 { // as many as the port has buffers
		e.check(e.g.Post(e.ctx, proto.Encode(proto.GPADLHeader{RelID: 9, GPADL: proto.GPADLID(i)})))
	}
	e.check(e.g.Post(e.ctx, proto.Encode(proto.OpenChannel{RelID: c.Offer.RelID, RingGPADL: id, DownstreamPage: 4})))
	e.waitState(d, vmbus.StateOpen)
	if serving, _ := d.counts(); serving != 0 {
		t.Fatal("the device started before the result was posted")
	}
	e.srv.Reset()
	if serving, served := d.counts(); serving+served != 0 {
		t.Fatal("the device was started")
	}
	e.fake.Unhold()
	e.g.Kexec()
	e.check(e.g.Boot(e.ctx))
	e.check(e.open(d).Close(e.ctx))
}

// Row 8: Linux's storvsc ignores an interrupt that arrives before the open
// result, and gets no other one while its ring is not empty. It is signalled
// again.
func TestRegressRow08_InterruptBeforeOpenResult(t *testing.T) {
	d := quiet(1)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		if err := ch.Send(ctx, &ring.Packet{Type: proto.PacketInBand}); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	relid := uint16(c.Offer.RelID)
	for e.fake.Signals(relid) < 2 { // the first one, and a reminder
		if e.ctx.Err() != nil {
			t.Fatal("never signalled again")
		}
		time.Sleep(time.Millisecond)
	}
	var p ring.Packet
	e.check(c.Recv(e.ctx, &p)) // read: no reminders any more
	c.Reader().Commit()
	n := e.fake.Signals(relid)
	time.Sleep(300 * time.Millisecond)
	if got := e.fake.Signals(relid); got != n {
		t.Errorf("%d signals for a ring that was read", got-n)
	}
	e.check(c.Close(e.ctx))
}

// Reset storms, contact storms and unload storms, with channels open and busy.
func TestHammerReconnect(t *testing.T) {
	e := newEnv(t)
	devs := []*device{echo(1), echo(2), quiet(3)}
	for _, d := range devs {
		e.offer(d)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	end := time.Now().Add(600 * time.Millisecond)
	rounds := 0
	for ; time.Now().Before(end); rounds++ {
		e.check(e.g.Boot(e.ctx))
		var wg sync.WaitGroup
		stop, cancel := context.WithCancel(e.ctx)
		for _, d := range devs[:rnd.IntN(4)] {
			c, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, 0)
			e.check(err)
			if err := c.Open(e.ctx, vmbustest.OpenOptions{Out: 2, In: 2}); err != nil {
				t.Fatal(err)
			}
			if d.offer.Name == "echo" {
				wg.Go(func() {
					for i := uint64(0); stop.Err() == nil; i++ {
						c.Request(stop, i, []byte("payload!"))
					}
				})
			}
		}
		time.Sleep(time.Duration(rnd.IntN(2000)) * time.Microsecond)
		switch rnd.IntN(3) {
		case 0:
			cancel() // the kernel stops its users first
			wg.Wait()
			e.check(e.g.Unload(e.ctx))
		case 1:
			e.srv.Reset()
			for _, d := range devs {
				if serving, _ := d.counts(); serving != 0 {
					t.Fatal("serving after Reset")
				}
			}
			cancel()
			wg.Wait()
			e.g.Kexec()
		case 2:
			cancel()
			wg.Wait()
			e.g.Kexec() // without a word
		}
		cancel()
		if e.g.FreePages() < 1000 {
			break // kernels that end without unload take their pages with them
		}
	}
	t.Logf("%d connections", rounds)
	if rounds == 0 {
		t.Error("no connections")
	}
}

// Host and guest open, close, remove and offer at the same time, under load.
func TestHammerHotPlug(t *testing.T) {
	e := newEnv(t)
	e.check(e.g.Boot(e.ctx))
	var wg sync.WaitGroup
	end := time.Now().Add(600 * time.Millisecond)
	var opened atomic.Int64
	for n := range byte(3) {
		d := echo(n)
		wg.Go(func() { // the host
			rnd := rand.New(rand.NewPCG(uint64(n), 1))
			for time.Now().Before(end) {
				if err := e.srv.Offer(d); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
				if err := e.srv.Remove(d); err != nil {
					t.Error(err)
					return
				}
				if serving, _ := d.counts(); serving != 0 {
					t.Error("serving after Remove")
				}
			}
		})
		wg.Go(func() { // the guest
			ctx, cancel := context.WithDeadline(e.ctx, end)
			defer cancel()
			for ctx.Err() == nil {
				c, err := e.g.Find(ctx, d.offer.Type, d.offer.Instance, 0)
				if err != nil {
					return
				}
				if err := c.Open(ctx, vmbustest.OpenOptions{Out: 2, In: 2}); err != nil {
					continue // rescinded meanwhile
				}
				opened.Add(1)
				for i := range uint64(20) {
					if _, err := c.Request(ctx, i, []byte("payload!")); err != nil {
						break
					}
				}
				c.Modify(ctx, uint32(n))
				c.Close(ctx)
			}
		})
	}
	wg.Wait()
	e.sync()
	t.Logf("%d openings", opened.Load())
	if opened.Load() == 0 {
		t.Error("no openings")
	}
}

// Close while packets flow and the device waits for room: many times, with no
// guest memory touched after GPADL_TORNDOWN.
func TestHammerCloseDuringIO(t *testing.T) {
	d := echo(1)
	flood := func(ctx context.Context, ch *vmbus.Channel) error {
		p := &ring.Packet{Type: proto.PacketInBand, Payload: make([]byte, 100)}
		for {
			if err := ch.Send(ctx, p); err != nil {
				return err
			}
		}
	}
	d.serve = flood
	e, c := booted(t, d)
	for i := range 300 {
		e.check(c.Open(e.ctx, vmbustest.OpenOptions{Out: 2, In: 2 + i%3}))
		pfns := append([]uint64(nil), c.Rings()...)
		var p ring.Packet
		for range i % 50 {
			e.check(c.Recv(e.ctx, &p))
		}
		e.check(c.Close(e.ctx))
		// The pages are the guest's own now.
		for j, pfn := range pfns {
			w, err := e.mem.Word64(guestPage(pfn))
			e.check(err)
			w.Store(uint64(j) ^ 0x5555)
		}
		e.g.Alloc(0)
		for j, pfn := range pfns {
			w, _ := e.mem.Word64(guestPage(pfn))
			if w.Load() != uint64(j)^0x5555 {
				t.Fatalf("round %d: page %d was written after it was given back", i, j)
			}
		}
	}
}

// A signal that the guest sends for a channel that is closing or closed goes
// nowhere.
func TestSignalsAfterClose(t *testing.T) {
	d := echo(1)
	e, c := booted(t, d)
	id := hv.ConnectionID(c.Offer.ConnectionID)
	if st := e.fake.Signal(id); st != hv.StatusInvalidConnectionID {
		t.Errorf("before open: %v", st)
	}
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	if st := e.fake.Signal(id); st != hv.StatusSuccess {
		t.Errorf("open: %v", st)
	}
	e.check(c.Close(e.ctx))
	if st := e.fake.Signal(id); st != hv.StatusInvalidConnectionID {
		t.Errorf("after close: %v", st)
	}
}

// After Close every call answers, and Status keeps its last word.
func TestAfterClose(t *testing.T) {
	d := echo(1)
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	e.srv.Close()
	e.srv.Close()
	if err := e.srv.Offer(quiet(2)); !errors.Is(err, vmbus.ErrClosed) {
		t.Error(err)
	}
	if err := e.srv.Remove(d); !errors.Is(err, vmbus.ErrClosed) {
		t.Error(err)
	}
	e.srv.Reset()
	st := e.srv.Status()
	if st.Connected || len(st.Channels) != 1 || st.Channels[0].State != vmbus.StatePending {
		t.Errorf("%+v", st)
	}
	if serving, served := d.counts(); serving != 0 || served != 1 {
		t.Errorf("%d serving, %d served", serving, served)
	}
	if st := e.raw(1, proto.Encode(proto.Unload{})); st != hv.StatusInvalidConnectionID {
		t.Error(st)
	}
}

// A reset, or the end of the server, while a guest's unload still waits for a
// device: one end of all, and no answer to a guest that is gone.
func TestResetDuringUnload(t *testing.T) {
	for _, name := range []string{"reset", "close"} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			d := quiet(1)
			d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
				<-ctx.Done()
				<-release
				return vmbus.ErrRescind // and it never comes back
			}
			e, c := booted(t, d)
			e.offer(quiet(2))
			e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
			e.post(proto.Unload{})
			e.waitState(d, vmbus.StateClosing)
			e.post(proto.InitiateContact{Version: proto.Version5_3, Interrupt: 2}) // not read meanwhile
			done := make(chan struct{})
			go func() {
				if name == "close" {
					e.srv.Close()
				} else {
					e.srv.Reset()
				}
				close(done)
			}()
			select {
			case <-done:
				t.Error("over before the device had ended")
			case <-time.After(10 * time.Millisecond):
			}
			close(release)
			<-done
			st := e.srv.Status()
			if st.Connected || len(st.Channels) != 1 || st.Channels[0].State != vmbus.StatePending {
				t.Errorf("%+v", st)
			}
			if s := e.stray(); len(s) != 0 {
				t.Errorf("answered %v", s)
			}
			if name == "reset" {
				e.g.Kexec()
				e.check(e.g.Boot(e.ctx))
				e.check(e.open(quiet(2)).Close(e.ctx))
			}
		})
	}
}
