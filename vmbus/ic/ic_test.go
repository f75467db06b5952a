package ic

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

// env is a server with one service, and a guest that has opened it.
type env struct {
	t   *testing.T
	ctx context.Context
	srv *vmbus.Server
	g   *vmbustest.Guest
	c   *vmbustest.Channel
	wg  sync.WaitGroup
}

// serve offers d and opens it; the guest answers with ic until the test ends.
func serve(t *testing.T, d vmbus.Device, ic *vmbustest.IC) *env {
	t.Helper()
	mem, err := guest.New(guest.Region{Base: 0, Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	fake := vmbustest.NewFake(1)
	e := &env{t: t, ctx: ctx}
	if e.srv, err = vmbus.NewServer(vmbus.Config{Host: fake, Memory: mem, VPs: 1, Logf: t.Logf}); err != nil {
		t.Fatal(err)
	}
	e.g = vmbustest.NewGuest(fake, mem)
	t.Cleanup(func() {
		cancel()
		e.wg.Wait()
		e.srv.Close()
		e.g.Close()
		fake.Close()
		mem.Close()
	})
	e.check(e.srv.Offer(d))
	e.check(e.g.Boot(ctx))
	if e.c, err = e.g.Find(ctx, d.Offer().Type, d.Offer().Instance, 0); err != nil {
		t.Fatal(err)
	}
	e.check(e.c.Open(ctx, vmbustest.OpenOptions{})) // 12 KiB each way and the headers
	e.wg.Go(func() {
		if err := ic.Serve(ctx, e.c); ctx.Err() == nil {
			t.Logf("the guest's service ended: %v", err)
		}
	})
	return e
}

func (e *env) check(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// until waits for a condition.
func (e *env) until(what string, f func() bool) {
	e.t.Helper()
	for !f() {
		if e.ctx.Err() != nil {
			e.t.Fatalf("never: %s", what)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// stopped returns why the device ended.
func (e *env) stopped() string {
	e.t.Helper()
	var msg string
	e.until("service ends", func() bool {
		st := e.srv.Status().Channels[0]
		msg = st.Error
		return st.State == vmbus.StateStopped
	})
	return msg
}

func TestGoldenMessage(t *testing.T) {
	b := Encode(Header{Framework: Version{3, 0}, Type: MsgShutdown, Message: Version{3, 2}, TransactionID: 9, Flags: FlagTransaction | FlagRequest}, []byte{1, 2, 3, 4})
	want := "01000000" + "18000000" + "03000000" + "0300" + "03000200" + "0400" + "00000000" + "09" + "03" + "0000" + "01020304"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("\n%s want\n%s", got, want)
	}
	h, body, err := Decode(append(b, 0, 0, 0, 0))
	if err != nil || h.Type != MsgShutdown || h.TransactionID != 9 || h.Message != (Version{3, 2}) || !bytes.Equal(body, []byte{1, 2, 3, 4}) {
		t.Errorf("%+v %x %v", h, body, err)
	}
	if binary.Size(Header{}) != HeaderSize {
		t.Error(binary.Size(Header{}))
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := Encode(Header{}, []byte{1, 2})
	for name, b := range map[string][]byte{
		"empty": nil, "no header": good[:27], "pipe type": append([]byte{2}, good[1:]...),
		"pipe size": append([]byte{1, 0, 0, 0, 255}, good[5:]...),
		"body size": func() []byte { b := bytes.Clone(good); b[18] = 3; return b }(),
	} {
		if _, _, err := Decode(b); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(Header{Type: MsgHeartbeat}, make([]byte, 40)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, body, err := Decode(b)
		if err == nil && (int(h.BodySize) != len(body) || len(body) > len(b)-28) {
			t.Fatalf("%+v with %d of %d bytes", h, len(body), len(b))
		}
	})
}

// The versions that come of each pair of lists, as Linux chooses.
func TestNegotiation(t *testing.T) {
	for _, c := range []struct {
		name       string
		frameworks []vmbustest.ICVersion
		messages   []vmbustest.ICVersion
		want       Version
	}{
		{"Linux", nil, vmbustest.LinuxHeartbeat, Version{3, 0}},
		{"old messages", nil, []vmbustest.ICVersion{{Major: 1, Minor: 0}}, Version{1, 0}},
		{"old framework", []vmbustest.ICVersion{{Major: 1, Minor: 0}}, []vmbustest.ICVersion{{Major: 1, Minor: 0}}, Version{1, 0}},
		{"no messages", nil, []vmbustest.ICVersion{{Major: 9, Minor: 9}}, Version{}},
		{"no framework", []vmbustest.ICVersion{{Major: 2, Minor: 0}}, vmbustest.LinuxHeartbeat, Version{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &Heartbeat{}
			e := serve(t, h, &vmbustest.IC{Frameworks: c.frameworks, Messages: c.messages,
				Handle: func(typ uint16, v vmbustest.ICVersion, body []byte) uint32 {
					body[0]++
					return 0
				}})
			if c.want == (Version{}) {
				if got := e.stopped(); got != ErrNoVersion.Error() {
					t.Error(got)
				}
				return
			}
			e.until("beat", func() bool { return h.Status().Beats > 0 })
			if got := h.Status().Version; got != c.want {
				t.Errorf("version %v, want %v", got, c.want)
			}
		})
	}
}

// The negotiation on the wire.
func TestNegotiationPacket(t *testing.T) {
	packets := make(chan []byte, 1)
	serve(t, &Shutdown{}, &vmbustest.IC{Messages: vmbustest.LinuxShutdown, Mangle: func(b []byte) []byte {
		packets <- append([]byte(nil), b...)
		return b
	}})
	got := <-packets
	// The answer repeats the request but for flags, size, counts and the chosen versions.
	want := "01000000" + "34000000" + "00000000" + "0000" + "00000000" + "1000" + "00000000" + "01" + "05" + "0000" +
		"0100" + "0100" + "00000000" + "03000000" + "03000200" + "01000000" + "03000000" + "03000100" + "03000200" + "00000000" // the ring pads to 8
	if h := hex.EncodeToString(got); h != want {
		t.Errorf("\n%s want\n%s", h, want)
	}
}

func TestHeartbeat(t *testing.T) {
	h := &Heartbeat{Interval: time.Millisecond}
	var hung atomic.Bool
	unhang := make(chan struct{})
	e := serve(t, h, &vmbustest.IC{Messages: vmbustest.LinuxHeartbeat, Handle: func(typ uint16, v vmbustest.ICVersion, body []byte) uint32 {
		if typ != 1 || v != (vmbustest.ICVersion{Major: 3}) || len(body) != 40 {
			t.Errorf("type %d, version %v, %d bytes", typ, v, len(body))
		}
		binary.LittleEndian.PutUint64(body, binary.LittleEndian.Uint64(body)+1)
		binary.LittleEndian.PutUint32(body[8:], uint32(AppHealthy))
		if hung.Load() {
			<-unhang
		}
		return 0
	}})
	if h.Status().Connected && h.Status().Beats == 0 && !h.Status().LastSeen.IsZero() {
		t.Error("seen before it answered")
	}
	e.until("20 beats", func() bool { return h.Status().Beats >= 20 })
	st := h.Status()
	if !st.Connected || st.App != AppHealthy || time.Since(st.LastSeen) > time.Second {
		t.Errorf("%+v", st)
	}
	hung.Store(true)
	time.Sleep(20 * time.Millisecond) // one beat may be on its way
	st = h.Status()
	time.Sleep(30 * time.Millisecond)
	if now := h.Status(); now.Beats > st.Beats || !now.Connected || !now.LastSeen.Equal(st.LastSeen) {
		t.Errorf("a hung guest beats: %+v, then %+v", st, now)
	}
	hung.Store(false)
	close(unhang)
	e.until("more beats", func() bool { return h.Status().Beats > st.Beats })
	e.check(e.c.Close(e.ctx))
	if h.Status().Connected {
		t.Error("connected after close")
	}
}

// A guest that answers nonsense loses the service, and the service only.
func TestHostileAnswers(t *testing.T) {
	for name, mangle := range map[string]func(b []byte) []byte{
		"no response flag":  func(b []byte) []byte { b[25] = 1; return b },
		"other transaction": func(b []byte) []byte { b[24]++; return b },
		"other type":        func(b []byte) []byte { b[12] = 6; return b },
		"pipe type":         func(b []byte) []byte { b[0] = 9; return b },
		"huge pipe size":    func(b []byte) []byte { b[7] = 0xFF; return b },
		"huge body":         func(b []byte) []byte { b[18], b[19] = 0xFF, 0xFF; return b },
		"short":             func(b []byte) []byte { return b[:16] },
		"empty":             func(b []byte) []byte { return []byte{} },
		"no body":           func(b []byte) []byte { b[18] = 0; return b },
		"wrong count":       func(b []byte) []byte { b[28] = 7; return b },
		"versions nobody offered": func(b []byte) []byte {
			if b[12] == 0 {
				b[36] = 77
			} else {
				b[28]++
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := &Heartbeat{Interval: time.Millisecond}
			e := serve(t, h, &vmbustest.IC{Messages: vmbustest.LinuxHeartbeat, Mangle: mangle})
			if msg := e.stopped(); msg == "" {
				t.Error("no error")
			}
			if st := h.Status(); st.Connected || st.Beats != 0 {
				t.Errorf("%+v", st)
			}
			// The guest may close and come back.
			e.check(e.c.Close(e.ctx))
		})
	}
}

func TestShutdown(t *testing.T) {
	s := &Shutdown{}
	type request struct {
		flags  uint32
		reason string
	}
	got := make(chan request, 10)
	var status atomic.Uint32
	answer := make(chan struct{}, 10)
	e := serve(t, s, &vmbustest.IC{Messages: vmbustest.LinuxShutdown, Handle: func(typ uint16, v vmbustest.ICVersion, body []byte) uint32 {
		if typ != 3 || v != (vmbustest.ICVersion{Major: 3, Minor: 2}) || len(body) != 2060 || binary.LittleEndian.Uint32(body) != 0x80000000 {
			t.Errorf("type %d, version %v, %d bytes", typ, v, len(body))
		}
		got <- request{binary.LittleEndian.Uint32(body[8:]), string(bytes.TrimRight(body[12:], "\x00"))}
		<-answer
		return status.Load()
	}})
	for flags, want := range map[ShutdownFlags]uint32{PowerOff: 0, PowerOff | Force: 1, Restart: 2, Restart | Force: 3, Hibernate: 4} {
		answer <- struct{}{}
		e.check(s.Shutdown(e.ctx, flags, "because"))
		if r := <-got; r.flags != want || r.reason != "because" {
			t.Errorf("%+v", r)
		}
	}
	if !s.Ready() {
		t.Error("not ready")
	}
	status.Store(uint32(StatusFail))
	answer <- struct{}{}
	if err := s.Shutdown(e.ctx, Hibernate, ""); !errors.Is(err, StatusFail) {
		t.Errorf("a refusal: %v", err)
	}
	<-got
	status.Store(0)
	// A guest that takes its time: the caller gives up, a second caller waits
	// for the first answer, since one packet is in flight at a time.
	short, cancel := context.WithTimeout(e.ctx, 30*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(short, PowerOff, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	<-got
	second := make(chan error)
	go func() { second <- s.Shutdown(e.ctx, Restart, "") }()
	select {
	case err := <-second:
		t.Fatalf("answered before the first: %v", err)
	case r := <-got:
		t.Fatalf("%+v sent before the first answer", r)
	case <-time.After(20 * time.Millisecond):
	}
	answer <- struct{}{}
	answer <- struct{}{}
	e.check(<-second)
	if r := <-got; r.flags != 2 {
		t.Errorf("%+v", r)
	}
	// The guest closes with a request outstanding.
	go func() { second <- s.Shutdown(e.ctx, PowerOff, "") }()
	<-got
	e.check(e.c.Close(e.ctx))
	answer <- struct{}{}
	if err := <-second; !errors.Is(err, ErrShutdownClosed) {
		t.Error(err)
	}
	e.until("not ready", func() bool { return !s.Ready() })
}

// A shutdown that comes before the guest listens waits for it.
func TestShutdownBeforeTheGuestListens(t *testing.T) {
	s := &Shutdown{}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx, PowerOff, ""); !errors.Is(err, context.DeadlineExceeded) || s.Ready() {
		t.Error(err, s.Ready())
	}
	done := make(chan error, 1)
	long, cancel2 := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel2()
	go func() { done <- s.Shutdown(long, PowerOff, string(bytes.Repeat([]byte("long "), 1000))) }()
	serve(t, s, &vmbustest.IC{Messages: vmbustest.LinuxShutdown, Handle: func(typ uint16, v vmbustest.ICVersion, body []byte) uint32 {
		if body[2059] != 0 {
			t.Error("reason without its end")
		}
		return 0
	}})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// clock is a reference clock and a wall clock that a test moves.
type clock struct {
	mu        sync.Mutex
	reference uint64        // 100 ns
	wall      time.Duration // since 1970
}

func (c *clock) Now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reference
}

func (c *clock) Time() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(0, int64(c.wall))
}

// move moves both clocks at the same moment.
func (c *clock) move(reference, wall time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reference += uint64(reference / 100)
	c.wall += wall
}

type sample struct {
	wall, reference uint64
	flags           byte
}

func TestTimeSync(t *testing.T) {
	c := &clock{reference: 5000, wall: 1_700_000_000_123_456_700}
	ts := &TimeSync{Reference: c, Wall: c.Time, Interval: 5 * time.Millisecond}
	samples, quit := make(chan sample), make(chan struct{})
	serve(t, ts, &vmbustest.IC{Messages: vmbustest.LinuxTimeSync, Handle: func(typ uint16, v vmbustest.ICVersion, b []byte) uint32 {
		if typ != 4 || v != (vmbustest.ICVersion{Major: 4}) || len(b) < 22 {
			t.Errorf("type %d, version %v, %d bytes", typ, v, len(b))
		}
		select {
		case samples <- sample{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), b[16]}:
		case <-quit:
		}
		return 0
	}})
	t.Cleanup(func() { close(quit) })
	next := func(what string, flags byte) {
		t.Helper()
		got := <-samples
		if want := (sample{FileTime(c.Time()), c.Now(), flags}); got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	// The guest's answer is delayed until the test has taken the sample, so
	// the next one is not taken before.
	step := func(what string, flags byte, change func()) {
		t.Helper()
		change()
		<-samples // may have been taken before the change
		next(what, flags)
	}
	got := <-samples
	if got != (sample{133_444_736_001_234_567, 5000, 1}) {
		t.Errorf("first: %+v", got)
	}
	next("second", 2)
	step("after an hour", 2, func() { c.move(time.Hour, time.Hour) })
	step("50 ms of drift", 2, func() { c.move(0, 50*time.Millisecond) })
	// The clock is set once, then its difference is the new normal.
	c.move(0, time.Hour)
	if a, b := <-samples, <-samples; a.flags+b.flags != 3 {
		t.Errorf("host clock set: %+v, %+v", a, b)
	}
	next("afterwards", 2)
	c.move(0, -2*time.Hour)
	if a, b := <-samples, <-samples; a.flags+b.flags != 3 {
		t.Errorf("host clock set back: %+v, %+v", a, b)
	}
	c.move(0, time.Minute) // reference time stood still
	if a, b := <-samples, <-samples; a.flags+b.flags != 3 {
		t.Errorf("host slept: %+v, %+v", a, b)
	}
}

// Resync sets the clock at once, however long the interval.
func TestTimeSyncResync(t *testing.T) {
	c := &clock{}
	ts := &TimeSync{Reference: c, Wall: c.Time, Interval: time.Hour}
	samples, quit := make(chan byte), make(chan struct{})
	e := serve(t, ts, &vmbustest.IC{Messages: []vmbustest.ICVersion{{Major: 3}}, Handle: func(typ uint16, v vmbustest.ICVersion, b []byte) uint32 {
		if len(b) < 25 || v.Major != 3 {
			t.Errorf("version %v, %d bytes", v, len(b))
		}
		select {
		case samples <- b[24]:
		case <-quit:
		}
		return 0
	}})
	t.Cleanup(func() { close(quit) })
	for i := range 5 {
		if f := <-samples; f != 1 {
			t.Errorf("sample %d: flags %d", i, f)
		}
		ts.Resync()
		ts.Resync()
	}
	<-samples
	e.check(e.c.Close(e.ctx))
}

func TestFileTime(t *testing.T) {
	for want, x := range map[uint64]time.Time{
		fileTimeEpoch:                time.Unix(0, 0),
		fileTimeEpoch + 10_000_001:   time.Unix(1, 199),
		fileTimeEpoch - 10_000_000:   time.Unix(-1, 0),
		0:                            time.Date(1601, 1, 1, 0, 0, 0, 0, time.UTC),
		133_444_736_000_000_000 + 10: time.Unix(1_700_000_000, 1000),
	} {
		if got := FileTime(x); got != want {
			t.Errorf("%v: %d, want %d", x, got, want)
		}
	}
}

// What the services are called in errors and offers.
func TestOffersAndNames(t *testing.T) {
	for _, d := range []vmbus.Device{&Heartbeat{}, &Shutdown{}, &TimeSync{}} {
		o := d.Offer()
		if o.Flags&proto.OfferNamedPipe == 0 || o.UserDefined[0] != 4 || o.Name == "" || o.Instance == (proto.GUID{}) {
			t.Errorf("%+v", o)
		}
	}
	for _, s := range []Status{StatusFail, StatusNotSupported, StatusInvalid, StatusNotConnected, StatusLocked, 7} {
		if s.Error() == "" || fmt.Sprint(Version{3, 1}) != "3.1" {
			t.Errorf("%d", uint32(s))
		}
	}
}
