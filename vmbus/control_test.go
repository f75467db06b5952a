package vmbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

// Every version of guest meets every version of host, as Linux probes them.
func TestVersions(t *testing.T) {
	for _, host := range proto.Versions {
		for _, kernel := range proto.Versions {
			t.Run(fmt.Sprintf("host %v guest %v", host, kernel), func(t *testing.T) {
				e := newEnv(t, maxVersion(host))
				d := echo(1)
				e.offer(d)
				e.g.Max, e.g.VP = kernel, 1
				if kernel < proto.VersionWin81 {
					e.g.VP = 0
				}
				e.check(e.g.Boot(e.ctx))
				want := min(host, kernel)
				if got := e.g.Version(); got != want || e.srv.Status().Version != want {
					t.Fatalf("agreed on %v and %v, want %v", got, e.srv.Status().Version, want)
				}
				c := e.open(d)
				if b, err := c.Request(e.ctx, 7, []byte("12345678")); err != nil || string(b) != "12345678" {
					t.Fatal(string(b), err)
				}
				if err := c.Modify(e.ctx, 2); err != nil {
					t.Fatal(err)
				}
				e.check(c.Close(e.ctx))
				if want >= proto.Version4_1 {
					st, err := e.g.TLConnect(e.ctx, instance(1), instance(2))
					if err != nil || st != proto.StatusConnectionRefused {
						t.Fatalf("%#x %v", st, err)
					}
				}
				if want >= proto.VersionWin81 {
					e.check(e.g.Unload(e.ctx))
					e.check(e.g.Boot(e.ctx))
				}
				if s := e.stray(); len(s) != 0 {
					t.Errorf("stray messages: %v", s)
				}
			})
		}
	}
}

func TestNewServerRefuses(t *testing.T) {
	mem, err := guest.New(guest.Region{Base: 0, Size: guest.PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	f := vmbustest.NewFake(1)
	defer f.Close()
	for name, c := range map[string]vmbus.Config{
		"no host": {Memory: mem, VPs: 1}, "no memory": {Host: f, VPs: 1}, "no VPs": {Host: f, Memory: mem},
		"6.0": {Host: f, Memory: mem, VPs: 1, MaxVersion: 0x60000}, "4.2": {Host: f, Memory: mem, VPs: 1, MaxVersion: 0x40002},
	} {
		if s, err := vmbus.NewServer(c); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	// A connection that somebody else has is a host failure, and leaves nothing behind.
	for _, id := range []hv.ConnectionID{vmbus.MessageConnection4, vmbus.MessageConnection} {
		f.ConnectMessage(id, inUse{})
		if s, err := vmbus.NewServer(vmbus.Config{Host: f, Memory: mem, VPs: 1}); err == nil {
			s.Close()
			t.Errorf("connection %d taken twice", id)
		}
		if f.Connections() != 1 || f.Post(id, hv.Message{}) != hv.StatusSuccess {
			t.Errorf("%d connections, or not the first owner's", f.Connections())
		}
		f.Disconnect(id)
	}
}

type inUse struct{}

func (inUse) HandleMessage(hv.Message) hv.Status { return hv.StatusSuccess }

// contact posts an INITIATE_CONTACT and returns the response.
func (e *env) contact(m proto.InitiateContact) *proto.VersionResponse {
	e.t.Helper()
	n := len(e.g.Stray())
	if st := e.raw(vmbus.MessageConnection4, proto.Encode(m)); st != hv.StatusSuccess {
		e.t.Fatal(st)
	}
	for len(e.g.Stray()) == n {
		if e.ctx.Err() != nil {
			e.t.Fatal("no VERSION_RESPONSE")
		}
		time.Sleep(50 * time.Microsecond)
	}
	return e.g.Stray()[n].(*proto.VersionResponse)
}

func TestContactIsRefused(t *testing.T) {
	good := proto.InitiateContact{Version: proto.Version5_3, TargetVP: 1, Interrupt: proto.ContactSINT(2, 0), Monitor1: 4096, Monitor2: 8192}
	for name, change := range map[string]func(*proto.InitiateContact){
		"version 0":     func(m *proto.InitiateContact) { m.Version = 0 },
		"0.13":          func(m *proto.InitiateContact) { m.Version = 13 },
		"1.1":           func(m *proto.InitiateContact) { m.Version = 0x10001 },
		"5.4":           func(m *proto.InitiateContact) { m.Version = 0x50004 },
		"6.0":           func(m *proto.InitiateContact) { m.Version = 0x60000 },
		"max":           func(m *proto.InitiateContact) { m.Version = 0xFFFFFFFF },
		"other SINT":    func(m *proto.InitiateContact) { m.Interrupt = proto.ContactSINT(3, 0) },
		"VTL 2":         func(m *proto.InitiateContact) { m.Interrupt = proto.ContactSINT(2, 2) },
		"monitor pages": func(m *proto.InitiateContact) { m.Monitor2 = 0 },
	} {
		e := newEnv(t)
		m := good
		change(&m)
		if r := e.contact(m); *r != (proto.VersionResponse{}) {
			t.Errorf("%s: %+v", name, r)
		}
		if e.srv.Status().Connected {
			t.Errorf("%s: connected", name)
		}
		if r := e.contact(good); r.Supported != 1 || r.Selected != 1 {
			t.Errorf("%s: no recovery: %+v", name, r)
		}
	}
}

// Row 20: the target VP of INITIATE_CONTACT is checked before anything uses it.
// The refusal goes to VP 0.
func TestRegressRow20_ContactTargetVP(t *testing.T) {
	for _, vp := range []uint32{envVPs, 64, 2048, 0x80000000, 0xFFFFFFFF} {
		for _, v := range proto.Versions {
			e := newEnv(t)
			if r := e.contact(proto.InitiateContact{Version: v, TargetVP: vp, Interrupt: 2}); *r != (proto.VersionResponse{}) {
				t.Errorf("version %v, VP %#x: %+v", v, vp, r)
			}
		}
	}
}

// Row 9: reserved channels do not exist here; asking for one leaves nothing
// behind that a revocation could stumble over.
func TestRegressRow09_ReservedChannel(t *testing.T) {
	d := quiet(1)
	e, c := booted(t, d)
	id, _, err := c.NewBuffer(e.ctx, 8)
	e.check(err)
	e.post(proto.OpenReserved{RelID: c.Offer.RelID, RingGPADL: id, DownstreamPage: 4, TargetSINT: 2})
	e.post(proto.CloseReserved{RelID: c.Offer.RelID, TargetSINT: 2})
	e.post(proto.OpenReserved{RelID: c.Offer.RelID, RingGPADL: id, DownstreamPage: 4, TargetSINT: 99, TargetVP: 99})
	e.sync()
	if s := e.stray(); len(s) != 0 || e.state(d) != vmbus.StateOffered {
		t.Errorf("%v, channel %s", s, e.state(d))
	}
	e.check(c.Teardown(e.ctx, id))
	e.check(e.srv.Remove(d))
	<-c.Rescinded()
	e.waitState(d, "absent")
}

// Row 2: a target VP that does not exist, anywhere a message names one.
func TestRegressRow02_TargetVPOutOfRange(t *testing.T) {
	for _, vp := range []uint32{envVPs, envVPs + 1, 64, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF} {
		e := newEnv(t)
		d := quiet(1)
		e.offer(d)
		if r := e.contact(proto.InitiateContact{Version: proto.Version5_3, TargetVP: vp, Interrupt: 2}); r.Supported != 0 {
			t.Errorf("contact with VP %#x", vp)
		}
		e.check(e.g.Boot(e.ctx))
		c, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, 0)
		e.check(err)
		none := vp == proto.NoInterrupts // means: no interrupts
		if err := c.Open(e.ctx, vmbustest.OpenOptions{TargetVP: &vp}); (err == nil) != none {
			t.Errorf("open with VP %#x: %v", vp, err)
		}
		if none {
			e.check(c.Close(e.ctx))
		}
		c = e.open(d)
		if err := c.Modify(e.ctx, vp); (err == nil) != none {
			t.Errorf("modify to VP %#x: %v", vp, err)
		}
	}
}

// Row 3: types of the host's direction, before, during and after negotiation,
// change nothing and are answered by nothing.
func TestRegressRow03_ServerMessageTypesFromGuest(t *testing.T) {
	e := newEnv(t)
	d := quiet(1)
	e.offer(d)
	types := []proto.MessageType{0, 1, 2, 4, 6, 10, 12, 15, 17, 18, 19, 20, 23, 24, 25, 26, 27, 28, 29, 30, 255, 0xFFFFFFFF}
	storm := func() {
		for _, typ := range types {
			b := make([]byte, 240)
			b[0], b[1], b[2], b[3] = byte(typ), byte(typ>>8), byte(typ>>16), byte(typ>>24)
			e.check(e.g.Post(e.ctx, b))
		}
	}
	storm()
	e.check(e.g.Connect(e.ctx))
	storm()
	e.check(e.g.RequestOffers(e.ctx))
	c := e.open(d)
	storm()
	e.sync()
	if st := e.state(d); st != vmbus.StateOpen {
		t.Errorf("channel is %s", st)
	}
	e.check(c.Close(e.ctx))
	if s := e.stray(); len(s) != 0 {
		t.Errorf("answers: %v", s)
	}
	if !e.logged("ignored") {
		t.Error("nothing logged")
	}
}

// Messages of every type and every length that is too short do nothing.
func TestShortMessages(t *testing.T) {
	e := newEnv(t)
	d := quiet(1)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	e.open(d)
	for typ := range 32 {
		for n := range 40 {
			if n >= 8 && (typ == 3 || typ == 16) {
				continue // REQUESTOFFERS and UNLOAD are whole with 8 bytes
			}
			b := make([]byte, n)
			if n > 0 {
				b[0] = byte(typ)
			}
			switch proto.MessageType(typ) {
			case proto.MsgCloseChannel, proto.MsgRelIDReleased:
				if n >= 12 {
					continue
				}
			case proto.MsgGPADLTeardown, proto.MsgGPADLBody, proto.MsgModifyChannel:
				if n >= 16 {
					continue
				}
			case proto.MsgGPADLHeader:
				if n >= 20 {
					continue
				}
			}
			e.check(e.g.Post(e.ctx, b))
		}
	}
	if st := e.g.Machine.Post(vmbus.MessageConnection, hv.NewMessage(7, proto.Encode(proto.Unload{}))); st != hv.StatusSuccess {
		t.Error(st)
	}
	e.sync()
	if e.state(d) != vmbus.StateOpen || len(e.stray()) != 0 {
		t.Errorf("channel is %s, answers %v", e.state(d), e.stray())
	}
}

// What a channel message may find, and what it is answered, state by state.
func TestControlPlaneStates(t *testing.T) {
	ask := func(e *env, m proto.Message) []proto.Message {
		e.t.Helper()
		n := len(e.stray())
		e.post(m)
		e.sync()
		return e.stray()[n:]
	}
	t.Run("without a connection", func(t *testing.T) {
		e := newEnv(t)
		e.offer(quiet(1))
		for _, m := range []proto.Message{proto.RequestOffers{}, proto.OpenChannel{RelID: 1}, proto.CloseChannel{RelID: 1}, proto.GPADLHeader{RelID: 1},
			proto.GPADLTeardown{RelID: 1}, proto.RelIDReleased{RelID: 1}, proto.ModifyChannel{RelID: 1}, proto.TLConnectRequest{}} {
			e.post(m)
		}
		e.check(e.g.Boot(e.ctx))
		e.sync()
		if s := e.stray(); len(s) != 0 {
			t.Errorf("answered %v", s)
		}
	})
	t.Run("before offers", func(t *testing.T) {
		e := newEnv(t)
		e.offer(quiet(1))
		e.check(e.g.Connect(e.ctx))
		if r := ask(e, proto.OpenChannel{RelID: 1, OpenID: 5}); len(r) != 1 || r[0].(*proto.OpenChannelResult).Status == 0 || r[0].(*proto.OpenChannelResult).OpenID != 5 {
			t.Errorf("open: %v", r)
		}
		if r := ask(e, proto.GPADLHeader{RelID: 1, GPADL: 3, RangeCount: 1}); len(r) != 1 || r[0].(*proto.GPADLCreated).Status == 0 {
			t.Errorf("GPADL: %v", r)
		}
	})
	t.Run("closed", func(t *testing.T) {
		e := newEnv(t)
		d := quiet(1)
		e.offer(d)
		e.check(e.g.Boot(e.ctx))
		for _, m := range []proto.Message{proto.CloseChannel{RelID: 1}, proto.RelIDReleased{RelID: 1}, proto.CloseChannel{RelID: 0},
			proto.CloseChannel{RelID: 2047}, proto.CloseChannel{RelID: 2048}, proto.CloseChannel{RelID: 0xFFFFFFFF}, proto.RelIDReleased{RelID: 0xFFFFFFFF},
			proto.RequestOffers{}} {
			if r := ask(e, m); len(r) != 0 {
				t.Errorf("%v: %v", m, r)
			}
		}
		if r := ask(e, proto.ModifyChannel{RelID: 1, TargetVP: 1}); len(r) != 1 || r[0].(*proto.ModifyChannelResult).Status == 0 {
			t.Errorf("modify: %v", r)
		}
		if r := ask(e, proto.ModifyChannel{RelID: 5000, TargetVP: 1}); len(r) != 1 || r[0].(*proto.ModifyChannelResult).Status == 0 {
			t.Errorf("modify: %v", r)
		}
		for _, m := range []proto.OpenChannel{{RelID: 1, RingGPADL: 99}, {RelID: 0}, {RelID: 2048}, {RelID: 0xFFFFFFFF}} {
			if r := ask(e, m); len(r) != 1 || r[0].(*proto.OpenChannelResult).Status == 0 {
				t.Errorf("open %+v: %v", m.RelID, r)
			}
		}
		if st := e.state(d); st != vmbus.StateOffered {
			t.Error(st)
		}
	})
	t.Run("open", func(t *testing.T) {
		e := newEnv(t)
		d := echo(1)
		e.offer(d)
		e.check(e.g.Boot(e.ctx))
		c := e.open(d)
		if r := ask(e, proto.OpenChannel{RelID: c.Offer.RelID, RingGPADL: 0xE1E10, DownstreamPage: 4}); len(r) != 1 || r[0].(*proto.OpenChannelResult).Status == 0 {
			t.Errorf("second open: %v", r)
		}
		if _, err := c.Request(e.ctx, 1, nil); err != nil {
			t.Errorf("the open channel suffered: %v", err)
		}
	})
}

// Ring GPADLs and offsets that cannot be two rings.
func TestOpenRefusesRings(t *testing.T) {
	e := newEnv(t)
	d := quiet(1)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, 0)
	e.check(err)
	open := func(id proto.GPADLID, page uint32) *proto.OpenChannelResult {
		n := len(e.stray())
		e.post(proto.OpenChannel{RelID: c.Offer.RelID, RingGPADL: id, DownstreamPage: page})
		e.sync()
		return e.stray()[n].(*proto.OpenChannelResult)
	}
	pfns := e.g.Alloc(8)
	for _, half := range [][]uint64{pfns[:4], pfns[4:]} {
		e.check(ring.Format(e.mem, half))
	}
	gpadl := func(ranges ...guest.PageRange) proto.GPADLID {
		id, err := c.CreateGPADL(e.ctx, ranges...)
		e.check(err)
		return id
	}
	whole := gpadl(guest.PageRange{ByteCount: 8 * guest.PageSize, PFNs: pfns})
	for _, page := range []uint32{0, 1, 7, 8, 9, 0x7FFFFFFF, 0xFFFFFFFF} {
		if r := open(whole, page); r.Status == 0 {
			t.Errorf("second ring at page %d", page)
		}
	}
	for name, id := range map[string]proto.GPADLID{
		"two ranges":  gpadl(guest.PageRange{ByteCount: 4 * guest.PageSize, PFNs: pfns[:4]}, guest.PageRange{ByteCount: 4 * guest.PageSize, PFNs: pfns[4:]}),
		"offset":      gpadl(guest.PageRange{ByteOffset: 8, ByteCount: 8*guest.PageSize - 8, PFNs: pfns}),
		"broken page": gpadl(guest.PageRange{ByteCount: 8*guest.PageSize - 1, PFNs: pfns}),
		"one page":    gpadl(guest.PageRange{ByteCount: guest.PageSize, PFNs: pfns[:1]}),
		"unknown":     12345,
	} {
		if r := open(id, 4); r.Status == 0 {
			t.Errorf("%s opened", name)
		}
	}
	// Indices that no ring can have.
	for _, at := range []guest.GPA{0, 4, 4 * guest.PageSize} {
		word := guest.GPA(pfns[at/guest.PageSize]<<guest.PageShift) + at%guest.PageSize
		w, err := e.mem.Word(word)
		e.check(err)
		w.Store(4096 * 3)
		if r := open(whole, 4); r.Status == 0 {
			t.Errorf("opened with an index beyond the ring at %#x", uint64(at))
		}
		w.Store(0)
	}
	// The host's own failure.
	e.fake.RefuseEvents(errors.New("no eventfd left"))
	if r := open(whole, 4); r.Status == 0 {
		t.Error("opened without a way to signal")
	}
	e.fake.RefuseEvents(nil)
	if r := open(whole, 4); r.Status != 0 {
		t.Errorf("status %#x in the end", r.Status)
	}
	e.waitState(d, vmbus.StateOpen)
	for serving, served := d.counts(); serving != 1 || served != 0; serving, served = d.counts() {
		// Its goroutine may still have to begin.
		if e.ctx.Err() != nil {
			t.Fatalf("%d serving, %d served", serving, served)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// A device sees what the guest gave with OPENCHANNEL, a close cancels it, and
// the channel can be opened again.
func TestOpenCloseReopen(t *testing.T) {
	e := newEnv(t)
	d := echo(1)
	got := make(chan [proto.UserDataSize]byte, 10)
	serve := d.serve
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		got <- ch.UserData()
		if vp, ok := ch.TargetVP(); vp != 2 || !ok || ch.Version() != proto.Version5_3 || ch.Offer().Instance != d.offer.Instance || ch.Memory() != e.mem || ch.RelID() != 1 {
			return errors.New("wrong view of the channel")
		}
		return serve(ctx, ch)
	}
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, 0)
	e.check(err)
	pages := e.g.FreePages()
	for i := range 20 {
		vp, data := uint32(2), [proto.UserDataSize]byte{byte(i), 119: byte(i)}
		e.check(c.Open(e.ctx, vmbustest.OpenOptions{TargetVP: &vp, UserData: data, Out: 2 + i%3, In: 3}))
		if b := <-got; b != data {
			t.Fatalf("user data %v", b)
		}
		for j := range uint64(5) {
			want := bytes.Repeat([]byte{byte(j)}, 8*int(j+1))
			if b, err := c.Request(e.ctx, j, want); err != nil || !bytes.Equal(b, want) {
				t.Fatal(b, err)
			}
		}
		e.interrupted(c, 2, 0)
		if c.Events(0) != 0 {
			t.Fatal("interrupts on the wrong VP")
		}
		e.check(c.Close(e.ctx))
		if e.g.FreePages() != pages {
			t.Fatal("pages lost")
		}
	}
	if serving, served := d.counts(); serving != 0 || served != 20 {
		t.Errorf("%d serving, %d served", serving, served)
	}
	if s := e.srv.Status().Channels[0]; s.Error != "" || s.State != vmbus.StateOffered {
		t.Errorf("%+v", s)
	}
}

// An OPEN that comes while the last Serve still ends waits for it.
func TestOpenWhileClosing(t *testing.T) {
	e := newEnv(t)
	release := make(chan struct{})
	d := quiet(1)
	d.serve = func(ctx context.Context, ch *vmbus.Channel) error {
		<-ctx.Done()
		<-release
		return nil
	}
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c := e.open(d)
	id, pfns, err := c.NewBuffer(e.ctx, 8) // rings of the second opening
	e.check(err)
	for _, half := range [][]uint64{pfns[:4], pfns[4:]} {
		e.check(ring.Format(e.mem, half))
	}
	n := len(e.stray())
	e.post(proto.CloseChannel{RelID: c.Offer.RelID})
	e.post(proto.OpenChannel{RelID: c.Offer.RelID, OpenID: 77, RingGPADL: id, DownstreamPage: 4})
	e.post(proto.OpenChannel{RelID: c.Offer.RelID, OpenID: 78, RingGPADL: id, DownstreamPage: 4})
	e.sync()
	if s := e.stray()[n:]; len(s) != 1 || s[0].(*proto.OpenChannelResult).OpenID != 78 || s[0].(*proto.OpenChannelResult).Status == 0 {
		t.Fatalf("answered %v before the old Serve returned", s)
	}
	if e.state(d) != vmbus.StateClosing {
		t.Error(e.state(d))
	}
	release <- struct{}{}
	e.waitState(d, vmbus.StateOpen)
	e.sync()
	if s := e.stray()[n+1:]; len(s) != 1 || *s[0].(*proto.OpenChannelResult) != (proto.OpenChannelResult{RelID: c.Offer.RelID, OpenID: 77}) {
		t.Fatalf("answered %v", s)
	}
	// Closed again before the second Serve has returned, and a third opening
	// taken back by a close.
	e.post(proto.CloseChannel{RelID: c.Offer.RelID})
	e.post(proto.OpenChannel{RelID: c.Offer.RelID, OpenID: 79, RingGPADL: id, DownstreamPage: 4})
	e.post(proto.CloseChannel{RelID: c.Offer.RelID})
	e.sync()
	close(release)
	e.waitState(d, vmbus.StateOffered)
	if s := e.stray()[n+2:]; len(s) != 0 {
		t.Errorf("answered %v to an opening that was closed again", s)
	}
}

// A device that ends by itself leaves a dead channel, which the guest closes
// as usual; its error shows in Status.
func TestDeviceEndsByItself(t *testing.T) {
	e := newEnv(t)
	d := echo(1)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c := e.open(d)
	c.Writer().Put(&ring.Packet{Type: 5, Payload: []byte("nonsense")}) // no such type
	e.check(c.Writer().Publish())
	e.waitState(d, vmbus.StateStopped)
	if s := e.srv.Status().Channels[0]; s.Error == "" {
		t.Errorf("%+v", s)
	}
	if !e.logged("channel %d") {
		t.Error("not logged")
	}
	e.check(c.Modify(e.ctx, 1))
	e.check(c.Close(e.ctx))
	c = e.open(d)
	if _, err := c.Request(e.ctx, 1, nil); err != nil {
		t.Error(err)
	}
}

// A guest that leaves its message slot full is told to wait, and gets every
// answer in order when it listens again; nothing grows without bound.
func TestBackPressure(t *testing.T) {
	e := newEnv(t)
	e.check(e.g.Boot(e.ctx))
	e.fake.Hold()
	accepted := 0
	refused := 0
	for i := range uint32(5000) {
		switch st := e.raw(1, proto.Encode(proto.GPADLHeader{RelID: 7, GPADL: proto.GPADLID(i)})); st {
		case hv.StatusSuccess:
			accepted++
		case hv.StatusInsufficientBuffers:
			refused++
			if refused == 1 {
				time.Sleep(10 * time.Millisecond) // let the server take what it will
			}
		default:
			t.Fatal(st)
		}
	}
	if accepted > 200 || refused == 0 {
		t.Fatalf("%d messages accepted from a guest that does not listen", accepted)
	}
	e.fake.Unhold()
	e.sync()
	last := -1
	for _, m := range e.stray() {
		id := int(m.(*proto.GPADLCreated).GPADL)
		if id <= last {
			t.Fatalf("answer for %d after %d", id, last)
		}
		last = id
		accepted--
	}
	if accepted != 0 {
		t.Errorf("%d messages without an answer", accepted)
	}
}

// A guest whose SynIC is off loses its answers, but blocks nobody.
func TestAnswersToASwitchedOffSynIC(t *testing.T) {
	e := newEnv(t)
	d := echo(1)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c := e.open(d)
	e.fake.SwitchSynIC(false)
	for i := range 100 {
		e.post(proto.GPADLHeader{RelID: 9, GPADL: proto.GPADLID(i)})
	}
	e.post(proto.OpenChannel{RelID: 1})
	for !e.logged("dropped") {
		if e.ctx.Err() != nil {
			t.Fatal("nothing was dropped")
		}
		time.Sleep(time.Millisecond)
	}
	e.srv.Status()
	e.fake.SwitchSynIC(true)
	e.sync()
	if _, err := c.Request(e.ctx, 1, nil); err != nil {
		t.Error(err)
	}
}

// interrupted waits until the VP took more than n interrupts of the channel. A
// packet may be seen before its interrupt.
func (e *env) interrupted(c *vmbustest.Channel, vp hv.VPIndex, n int) {
	e.t.Helper()
	for c.Events(vp) <= n {
		if e.ctx.Err() != nil {
			e.t.Fatalf("no interrupt on VP %d", vp)
		}
		time.Sleep(50 * time.Microsecond)
	}
}

func TestModifyMovesInterrupts(t *testing.T) {
	e := newEnv(t)
	d := echo(1)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c := e.open(d)
	for vp := range uint32(envVPs) {
		e.check(c.Modify(e.ctx, vp))
		before := c.Events(hv.VPIndex(vp))
		if _, err := c.Request(e.ctx, 1, nil); err != nil {
			t.Fatal(err)
		}
		e.interrupted(c, hv.VPIndex(vp), before)
	}
	e.check(c.Modify(e.ctx, proto.NoInterrupts))
	n := e.fake.Signals(uint16(c.Offer.RelID))
	e.check(c.Send(e.ctx, &ring.Packet{Type: proto.PacketInBand, Flags: 1, TransactionID: 5}))
	for ok := false; !ok; {
		var p ring.Packet
		var err error
		ok, err = c.TryRecv(&p)
		e.check(err)
	}
	if got := e.fake.Signals(uint16(c.Offer.RelID)); got != n {
		t.Errorf("%d signals to a channel without interrupts", got-n)
	}
}

// Messages that are newer than the agreed version are ignored: their answers
// do not exist.
func TestMessagesNewerThanTheVersion(t *testing.T) {
	e := newEnv(t, maxVersion(proto.Version4_0))
	d := echo(1)
	e.offer(d)
	e.check(e.g.Boot(e.ctx))
	c := e.open(d)
	e.post(proto.TLConnectRequest{})
	e.post(proto.ModifyChannel{RelID: c.Offer.RelID, TargetVP: 3})
	e.sync()
	if _, err := c.Request(e.ctx, 1, nil); err != nil {
		t.Fatal(err)
	}
	if s := e.stray(); len(s) != 0 || c.Events(3) != 0 {
		t.Errorf("%v, %d interrupts on the new VP", s, c.Events(3))
	}
}
