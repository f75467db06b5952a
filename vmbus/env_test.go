package vmbus_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

// env is a server and a guest with nothing but queues in between.
type env struct {
	t    testing.TB
	ctx  context.Context
	mem  *guest.Memory
	fake *vmbustest.Fake
	srv  *vmbus.Server
	g    *vmbustest.Guest

	synced int

	mu   sync.Mutex
	logs []string
}

const (
	envVPs = 4
	envRAM = 64 << 20
)

func newEnv(t testing.TB, change ...func(*vmbus.Config)) *env {
	t.Helper()
	before := runtime.NumGoroutine()
	mem, err := guest.New(guest.Region{Base: 0, Size: envRAM})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	e := &env{t: t, ctx: ctx, mem: mem, fake: vmbustest.NewFake(envVPs)}
	cfg := vmbus.Config{Host: e.fake, Memory: mem, VPs: envVPs, Logf: e.logf}
	for _, f := range change {
		f(&cfg)
	}
	if e.srv, err = vmbus.NewServer(cfg); err != nil {
		t.Fatal(err)
	}
	e.g = vmbustest.NewGuest(e.fake, mem)
	t.Cleanup(func() {
		e.fake.Unhold()
		e.srv.Close()
		e.g.Close()
		e.fake.Close()
		cancel()
		if n := e.fake.Connections(); n != 0 {
			t.Errorf("%d connections left", n)
		}
		mem.Close() // whoever still touches guest memory crashes
		if _, fuzzing := t.(*testing.F); fuzzing {
			return // the fuzzing engine has goroutines of its own
		}
		for i := 0; runtime.NumGoroutine() > before; i++ {
			if i == 200 {
				buf := make([]byte, 1<<16)
				t.Fatalf("goroutines left:\n%s", buf[:runtime.Stack(buf, true)])
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return e
}

func maxVersion(v proto.Version) func(*vmbus.Config) {
	return func(c *vmbus.Config) { c.MaxVersion = v }
}

func (e *env) logf(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.logs = append(e.logs, format)
}

// logged reports whether a line with the text was logged. The control plane is
// asynchronous: synchronise before.
func (e *env) logged(text string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.logs {
		if strings.Contains(l, text) {
			return true
		}
	}
	return false
}

func (e *env) check(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// syncGPADL is where the ids begin that sync uses.
const syncGPADL = 0xF0000000

// sync waits until the server has handled all that was posted before, and the
// guest all that it answered: a GPADL of a channel that does not exist fails
// loudly, after everything else. It needs a connection.
func (e *env) sync() {
	e.t.Helper()
	e.synced++
	id := proto.GPADLID(syncGPADL + e.synced)
	e.post(proto.GPADLHeader{RelID: 0, GPADL: id})
	for {
		for _, m := range e.g.Stray() {
			if c, ok := m.(*proto.GPADLCreated); ok && c.GPADL == id {
				return
			}
		}
		if e.ctx.Err() != nil {
			e.t.Fatal("the server does not answer any more")
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// stray returns what the guest did not expect, without the answers to sync.
func (e *env) stray() (m []proto.Message) {
	for _, x := range e.g.Stray() {
		if c, ok := x.(*proto.GPADLCreated); !ok || c.GPADL < syncGPADL {
			m = append(m, x)
		}
	}
	return m
}

func (e *env) post(m proto.Message) {
	e.t.Helper()
	e.check(e.g.Post(e.ctx, proto.Encode(m)))
}

func (e *env) offer(d vmbus.Device) {
	e.t.Helper()
	e.check(e.srv.Offer(d))
}

// open finds the channel of d and opens it.
func (e *env) open(d *device) *vmbustest.Channel {
	e.t.Helper()
	c, err := e.g.Find(e.ctx, d.offer.Type, d.offer.Instance, d.offer.SubChannel)
	e.check(err)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	return c
}

// state returns the state of the channel of d.
func (e *env) state(d *device) vmbus.ChannelState {
	for _, c := range e.srv.Status().Channels {
		if c.Type == d.offer.Type && c.Instance == d.offer.Instance && c.SubChannel == d.offer.SubChannel {
			return c.State
		}
	}
	return "absent"
}

func (e *env) waitState(d *device, want vmbus.ChannelState) {
	e.t.Helper()
	for e.state(d) != want {
		if e.ctx.Err() != nil {
			e.t.Fatalf("%s is %s, not %s", d.offer.Name, e.state(d), want)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// A device serves channels with a function.
type device struct {
	offer vmbus.Offer
	serve func(ctx context.Context, ch *vmbus.Channel) error

	mu      sync.Mutex
	serving int
	served  int
}

func (d *device) Offer() vmbus.Offer { return d.offer }

func (d *device) Serve(ctx context.Context, ch *vmbus.Channel) error {
	d.mu.Lock()
	d.serving++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.serving--
		d.served++
		d.mu.Unlock()
	}()
	return d.serve(ctx, ch)
}

func (d *device) counts() (serving, served int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.serving, d.served
}

func instance(n byte) proto.GUID { return proto.GUID{0: n, 15: 0xAA} }

// echo completes every packet that asks for it with the packet's payload.
func echo(n byte) *device {
	return &device{
		offer: vmbus.Offer{Name: "echo", Type: proto.TypeSCSI, Instance: instance(n)},
		serve: func(ctx context.Context, ch *vmbus.Channel) error {
			var p ring.Packet
			for {
				if err := ch.Recv(ctx, &p); err != nil {
					return err
				}
				if !p.WantsCompletion() {
					continue
				}
				if err := ch.SendCompletion(ctx, p.TransactionID, p.Payload); err != nil {
					return err
				}
			}
		},
	}
}

// quiet does nothing until it is told to end.
func quiet(n byte) *device {
	return &device{
		offer: vmbus.Offer{Name: "quiet", Type: proto.TypeBalloon, Instance: instance(n)},
		serve: func(ctx context.Context, ch *vmbus.Channel) error {
			<-ctx.Done()
			return nil
		},
	}
}

// status asserts a StatusError of the given type.
func (e *env) refused(err error, t proto.MessageType) {
	e.t.Helper()
	var s vmbustest.StatusError
	if !errors.As(err, &s) || s.Type != t || s.Status == 0 {
		e.t.Fatalf("got %v, want a failed %v", err, t)
	}
}

func (e *env) raw(id hv.ConnectionID, b []byte) hv.Status { return e.g.PostRaw(id, b) }
