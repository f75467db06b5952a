package synic_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

func TestConnect(t *testing.T) {
	g := synictest.New(t, 1, nil)
	p := g.Partition
	if err := p.ConnectMessage(1, refuse(0)); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"in use":     p.ConnectEvent(1, 1, &countingEvents{}),
		"25 bits":    p.ConnectMessage(1<<24, refuse(0)),
		"no flags":   p.ConnectEvent(2, 0, &countingEvents{}),
		"2049 flags": p.ConnectEvent(2, 2049, &countingEvents{}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := p.ConnectEvent(2, 2048, &countingEvents{}); err != nil {
		t.Error(err)
	}
	p.Disconnect(1)
	p.Disconnect(1) // nothing there any more
	p.Disconnect(77)
	if err := p.ConnectMessage(1, refuse(0)); err != nil {
		t.Errorf("again after disconnect: %v", err)
	}
	for id := hv.ConnectionID(100); ; id++ {
		if err := p.ConnectMessage(id, refuse(0)); err != nil {
			if id != 100+synic.MaxConnections-2 {
				t.Errorf("connection %d: %v", id, err)
			}
			break
		}
	}
}

// gate is a MessagePort and an EventPort that stops in the middle.
type gate struct{ in, out chan struct{} }

func (g *gate) HandleMessage(hv.Message) hv.Status {
	g.in <- struct{}{}
	<-g.out
	return hv.StatusSuccess
}

func (g *gate) HandleEvent(uint16) { g.HandleMessage(hv.Message{}) }

// Disconnect, and Close, wait for a handler that runs, and nothing runs after
// them.
func TestDisconnectWaits(t *testing.T) {
	for name, end := range map[string]func(*synic.Partition){
		"disconnect": func(p *synic.Partition) { p.Disconnect(1) },
		"close":      (*synic.Partition).Close,
	} {
		t.Run(name, func(t *testing.T) {
			g := synictest.New(t, 1, nil)
			p := g.Partition
			port := &gate{make(chan struct{}), make(chan struct{})}
			if err := p.ConnectEvent(1, 1, port); err != nil {
				t.Fatal(err)
			}
			status, ended := make(chan hv.Status, 1), make(chan struct{})
			go func() { status <- g.VPs[0].SignalEvent(1, 0) }()
			<-port.in
			go func() { end(p); close(ended) }()
			select {
			case <-ended:
				t.Fatal("did not wait for the handler")
			case <-time.After(20 * time.Millisecond):
			}
			close(port.out)
			<-ended
			if st := <-status; st != hv.StatusSuccess {
				t.Errorf("signal: %v", st)
			}
			if st := g.VPs[0].SignalEvent(1, 0); st == hv.StatusSuccess {
				t.Error("a signal after the end")
			}
		})
	}
}

// Handlers may use the partition.
type echo struct{ port *synic.SendPort }

func (e *echo) HandleMessage(m hv.Message) hv.Status { return e.port.Post(0, m) }

func TestEcho(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	if err := g.Partition.ConnectMessage(1, &echo{g.Partition.OpenMessagePort(0x99, 2, nil)}); err != nil {
		t.Fatal(err)
	}
	if st := g.VPs[0].PostMessage(1, 5, []byte("there and back")); st != hv.StatusSuccess {
		t.Fatal(st)
	}
	if vec, ok := g.VPs[0].WaitInterrupt(nil); !ok || vec != synictest.Vector {
		t.Fatalf("vector %#x", vec)
	}
	if m, ok := g.VPs[0].TakeMessage(2); !ok || m.Type != 5 || m.Origin != 0x99 || string(m.Bytes()) != "there and back" {
		t.Errorf("message %+v", m)
	}
}

// doorbells is a Doorbell that remembers who is registered.
type doorbells struct {
	mu  sync.Mutex
	fns map[hv.ConnectionID]func()
	err error
}

func (d *doorbells) Add(id hv.ConnectionID, fn func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return d.err
	}
	if d.fns[id] != nil {
		panic("added twice")
	}
	d.fns[id] = fn
	return nil
}

func (d *doorbells) Remove(id hv.ConnectionID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fns[id] == nil {
		panic("removed what is not there")
	}
	delete(d.fns, id)
}

func (d *doorbells) ids() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var s []int
	for id := range d.fns {
		s = append(s, int(id))
	}
	return fmt.Sprint(len(s), s)
}

// The kernel takes signals only while that means the same as the hypercall.
func TestDoorbell(t *testing.T) {
	d := &doorbells{fns: map[hv.ConnectionID]func(){}}
	g := synictest.New(t, 1, func(c *synic.Config) { c.Doorbell = d })
	p, v := g.Partition, g.VPs[0]
	expect := func(want string) {
		t.Helper()
		if got := d.ids(); got != want {
			t.Fatalf("registered %s, want %s", got, want)
		}
	}
	events := &countingEvents{}
	for id, flags := range map[hv.ConnectionID]uint16{1: 1, 2: 2} {
		if err := p.ConnectEvent(id, flags, events); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.ConnectMessage(3, refuse(0)); err != nil {
		t.Fatal(err)
	}
	expect("0 []") // no hypercall page yet
	v.BringUp(2)
	expect("1 [1]")
	v.Write(hv.MSRHypercall, 0)
	expect("0 []")
	v.Write(hv.MSRHypercall, 0x9001)
	expect("1 [1]")
	v.Write(hv.MSRGuestOSID, 0)
	expect("0 []")
	v.BringUp(2)
	p.Reset()
	expect("0 []")
	v.BringUp(2)
	expect("1 [1]")
	ring := d.fns[1]
	ring()
	if fmt.Sprint(events.flags) != "[0]" {
		t.Errorf("the port saw %v", events.flags)
	}
	p.Disconnect(1)
	expect("0 []")
	ring() // still in the machine's hands
	if len(events.flags) != 1 {
		t.Error("an event after Disconnect")
	}
	if err := p.ConnectEvent(4, 1, events); err != nil {
		t.Fatal(err)
	}
	expect("1 [4]")
	d.err = fmt.Errorf("too many descriptors")
	if err := p.ConnectEvent(5, 1, events); err != nil {
		t.Errorf("no doorbell is no failure: %v", err)
	}
	if st := v.SignalEvent(5, 0); st != hv.StatusSuccess || len(events.flags) != 2 {
		t.Errorf("signal without a doorbell: %v", st)
	}
	p.Close()
	expect("0 []")

	denied := &doorbells{fns: map[hv.ConnectionID]func(){}}
	g = synictest.New(t, 1, func(c *synic.Config) { c.Doorbell = denied; c.Privileges &^= hv.SignalEvents })
	g.VPs[0].BringUp(2)
	if err := g.Partition.ConnectEvent(1, 1, events); err != nil {
		t.Fatal(err)
	}
	if got := denied.ids(); got != "0 []" {
		t.Errorf("registered %s without the privilege to signal", got)
	}
}
