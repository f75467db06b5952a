package vmbustest

import (
	"fmt"
	"sync"

	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
)

// portBuffers is the number of message buffers of a port (TLFS).
const portBuffers = 16

// A Machine is the hypervisor as a guest's kernel sees it.
type Machine interface {
	// Post is HvCallPostMessage, Signal is HvCallSignalEvent with flag 0.
	Post(id hv.ConnectionID, m hv.Message) hv.Status
	Signal(id hv.ConnectionID) hv.Status
	// Attach sets who takes the messages and event flags of SINT 2. Messages
	// come one at a time and may be handled for long; events must be handled
	// without blocking. It is called once, before anything can arrive.
	Attach(message func(vp hv.VPIndex, m hv.Message), event func(vp hv.VPIndex, flag uint16))
	// Close ends the machine and joins its goroutines.
	Close()
}

// A Fake is a Machine and the vmbus.Host at its other side, without a SynIC in
// between.
type Fake struct {
	vps int

	mu       sync.Mutex
	work     sync.Cond
	messages map[hv.ConnectionID]vmbus.MessageHandler
	events   map[hv.ConnectionID]*fakeEvent
	queue    []fakeMessage
	held     bool
	off      bool
	closed   bool
	refuse   error
	onMsg    func(hv.VPIndex, hv.Message)
	onEvent  func(hv.VPIndex, uint16)
	done     chan struct{}

	// Signals counts event flags set for the guest, by flag number.
	signals map[uint16]int
}

type fakeMessage struct {
	port *fakePort
	vp   hv.VPIndex
	msg  hv.Message
}

type fakeEvent struct {
	mu sync.RWMutex
	h  vmbus.EventHandler
}

type fakePort struct {
	f       *Fake
	id      hv.PortID
	free    func()
	used    int
	starved bool
	closed  bool
}

// NewFake returns a machine with the given number of VPs.
func NewFake(vps int) *Fake {
	f := &Fake{vps: vps, messages: map[hv.ConnectionID]vmbus.MessageHandler{}, events: map[hv.ConnectionID]*fakeEvent{},
		done: make(chan struct{}), signals: map[uint16]int{},
		onMsg: func(hv.VPIndex, hv.Message) {}, onEvent: func(hv.VPIndex, uint16) {}}
	f.work.L = &f.mu
	go f.deliver()
	return f
}

// Attach implements Machine.
func (f *Fake) Attach(message func(hv.VPIndex, hv.Message), event func(hv.VPIndex, uint16)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onMsg, f.onEvent = message, event
}

// Hold keeps messages from the guest, as a guest does that leaves its message
// slot full. Unhold ends that.
func (f *Fake) Hold() { f.set(func() { f.held = true }) }

// Unhold: see Hold.
func (f *Fake) Unhold() { f.set(func() { f.held = false }) }

// SwitchSynIC switches the guest's SynIC on or off; it begins on.
func (f *Fake) SwitchSynIC(on bool) { f.set(func() { f.off = !on }) }

// RefuseEvents makes ConnectEvent fail, or succeed again with nil.
func (f *Fake) RefuseEvents(err error) { f.set(func() { f.refuse = err }) }

func (f *Fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.work.Broadcast()
}

// Signals returns how often the event flag was set for the guest.
func (f *Fake) Signals(flag uint16) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.signals[flag]
}

// Close implements Machine.
func (f *Fake) Close() {
	f.set(func() { f.closed = true })
	<-f.done
}

// deliver is the guest's interrupt handler for messages.
func (f *Fake) deliver() {
	defer close(f.done)
	for {
		f.mu.Lock()
		for !f.closed && (f.held || len(f.queue) == 0) {
			f.work.Wait()
		}
		if f.closed {
			f.mu.Unlock()
			return
		}
		m, handle := f.queue[0], f.onMsg
		f.queue = f.queue[1:]
		var free func()
		m.port.used--
		if m.port.starved {
			m.port.starved, free = false, m.port.free
		}
		f.mu.Unlock()
		if free != nil {
			free()
		}
		handle(m.vp, m.msg)
	}
}

// Post implements Machine.
func (f *Fake) Post(id hv.ConnectionID, m hv.Message) hv.Status {
	f.mu.Lock()
	h := f.messages[id]
	f.mu.Unlock()
	if h == nil {
		return hv.StatusInvalidConnectionID
	}
	return h.HandleMessage(m)
}

// Signal implements Machine.
func (f *Fake) Signal(id hv.ConnectionID) hv.Status {
	f.mu.Lock()
	e := f.events[id]
	f.mu.Unlock()
	if e == nil {
		return hv.StatusInvalidConnectionID
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.h != nil {
		e.h.HandleEvent(0)
	}
	return hv.StatusSuccess
}

// ConnectMessage implements vmbus.Host.
func (f *Fake) ConnectMessage(id hv.ConnectionID, h vmbus.MessageHandler) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.messages[id] != nil {
		return fmt.Errorf("connection %#x in use", uint32(id))
	}
	f.messages[id] = h
	return nil
}

// ConnectEvent implements vmbus.Host.
func (f *Fake) ConnectEvent(id hv.ConnectionID, flags uint16, h vmbus.EventHandler) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.refuse != nil:
		return f.refuse
	case f.events[id] != nil || flags != 1:
		return fmt.Errorf("connection %#x in use, or %d flags", uint32(id), flags)
	}
	f.events[id] = &fakeEvent{h: h}
	return nil
}

// Disconnect implements vmbus.Host.
func (f *Fake) Disconnect(id hv.ConnectionID) {
	f.mu.Lock()
	e := f.events[id]
	delete(f.events, id)
	delete(f.messages, id)
	f.mu.Unlock()
	if e != nil {
		e.mu.Lock()
		e.h = nil
		e.mu.Unlock()
	}
}

// Connections returns how many connections there are.
func (f *Fake) Connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.events) + len(f.messages)
}

// OpenMessagePort implements vmbus.Host.
func (f *Fake) OpenMessagePort(id hv.PortID, sint uint8, free func()) vmbus.MessageSender {
	if sint != vmbus.SINT {
		panic("vmbustest: VMBus messages go to SINT 2")
	}
	return &fakePort{f: f, id: id, free: free}
}

// Post implements vmbus.MessageSender.
func (p *fakePort) Post(vp hv.VPIndex, m hv.Message) hv.Status {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case p.closed:
		return hv.StatusInvalidPortID
	case p.used == portBuffers:
		p.starved = true
		return hv.StatusInsufficientBuffers
	case int(vp) >= f.vps:
		return hv.StatusInvalidVPIndex
	case f.off:
		return hv.StatusInvalidSynICState
	}
	m.Origin = uint64(p.id)
	p.used++
	f.queue = append(f.queue, fakeMessage{p, vp, m})
	f.work.Broadcast()
	return hv.StatusSuccess
}

// Close implements vmbus.MessageSender.
func (p *fakePort) Close() {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	p.closed = true
	var kept []fakeMessage
	for _, m := range f.queue {
		if m.port != p {
			kept = append(kept, m)
		}
	}
	f.queue = kept
}

// SignalEvent implements vmbus.Host.
func (f *Fake) SignalEvent(vp hv.VPIndex, sint uint8, flag uint16) hv.Status {
	f.mu.Lock()
	on, handle := !f.off, f.onEvent
	switch {
	case int(vp) >= f.vps:
		f.mu.Unlock()
		return hv.StatusInvalidVPIndex
	case sint != vmbus.SINT || flag == 0 || flag >= hv.EventFlagCount:
		f.mu.Unlock()
		return hv.StatusInvalidParameter
	}
	if on {
		f.signals[flag]++
	}
	f.mu.Unlock()
	if !on {
		return hv.StatusInvalidSynICState
	}
	handle(vp, flag)
	return hv.StatusSuccess
}
