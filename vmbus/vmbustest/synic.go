package vmbustest

import (
	"sync"

	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
	"github.com/hvpost/hvpost/vmbus"
)

// A SynIC is a Machine over a real synic.Partition: messages come through
// message slots and EOM, signals through event flag pages, and posts are
// hypercalls of its processors in turn.
type SynIC struct {
	g       *synictest.Guest
	vps     []*processor
	next    chan *processor // whose hypercall is next
	stop    chan struct{}
	wg      sync.WaitGroup
	message func(hv.VPIndex, hv.Message)
	event   func(hv.VPIndex, uint16)
}

// A processor runs one piece of the guest's code at a time: a hypercall or an
// interrupt handler.
type processor struct {
	mu sync.Mutex
	*synictest.VP
}

// NewSynIC brings up all processors of g for VMBus. Attach starts them.
func NewSynIC(g *synictest.Guest) *SynIC {
	m := &SynIC{g: g, next: make(chan *processor, len(g.VPs)), stop: make(chan struct{})}
	g.BringUp(vmbus.SINT)
	for _, v := range g.VPs {
		p := &processor{VP: v}
		m.vps = append(m.vps, p)
		m.next <- p
	}
	return m
}

// Attach implements Machine.
func (m *SynIC) Attach(message func(hv.VPIndex, hv.Message), event func(hv.VPIndex, uint16)) {
	m.message, m.event = message, event
	for _, p := range m.vps {
		m.wg.Go(func() { m.interrupts(p) })
	}
}

// interrupts is vmbus_isr with its tasklets: event flags first, then messages.
func (m *SynIC) interrupts(p *processor) {
	for {
		if _, ok := p.WaitInterrupt(m.stop); !ok {
			return
		}
		p.mu.Lock()
		flags := p.TakeEvents(vmbus.SINT)
		p.mu.Unlock()
		for _, f := range flags {
			m.event(p.Index(), f)
		}
		for {
			p.mu.Lock()
			msg, ok := p.TakeMessage(vmbus.SINT)
			p.mu.Unlock()
			if !ok {
				break
			}
			m.message(p.Index(), msg)
		}
	}
}

// Post implements Machine.
func (m *SynIC) Post(id hv.ConnectionID, msg hv.Message) hv.Status {
	return m.run(func(p *processor) hv.Status { return p.PostMessage(id, msg.Type, msg.Bytes()) })
}

// Signal implements Machine.
func (m *SynIC) Signal(id hv.ConnectionID) hv.Status {
	return m.run(func(p *processor) hv.Status { return p.SignalEvent(id, 0) })
}

func (m *SynIC) run(f func(p *processor) hv.Status) hv.Status {
	p := <-m.next
	m.next <- p
	p.mu.Lock()
	defer p.mu.Unlock()
	return f(p)
}

// Close implements Machine. The partition is its owner's.
func (m *SynIC) Close() {
	close(m.stop)
	m.wg.Wait()
}
