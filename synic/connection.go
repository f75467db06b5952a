package synic

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"sync/atomic"

	"github.com/hvpost/hvpost/synic/hv"
)

// connections are the connections of a partition. A published map is never
// changed.
type connections map[hv.ConnectionID]*connection

// A connection is the sending end: a number in a partition that leads to a
// port of the host or of another partition.
type connection struct {
	id   hv.ConnectionID
	port *port

	doorbell bool // registered with Config.Doorbell; guarded by connMu

	// users counts the calls in progress. Closing adds closing, which makes
	// the count negative; the last one out closes idle.
	users atomic.Int64
	idle  chan struct{}
}

const closing = math.MinInt64

// enter begins a call through the connection; false: it is closed.
func (c *connection) enter() bool {
	for {
		n := c.users.Load()
		if n < 0 {
			return false
		}
		if c.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *connection) leave() {
	if c.users.Add(-1) == closing {
		close(c.idle)
	}
}

// close lets no new call begin and waits for those in progress.
func (c *connection) close() {
	if c.users.Add(closing) == closing {
		close(c.idle)
	}
	<-c.idle
}

// ring is the connection's doorbell function.
func (c *connection) ring() {
	if c.enter() {
		c.port.signal(0)
		c.leave()
	}
}

// ErrConnectionInUse reports that a connection id is taken already.
var ErrConnectionInUse = errors.New("connection id in use")

// ErrTooManyConnections reports that a partition has MaxConnections.
var ErrTooManyConnections = fmt.Errorf("over %d connections", MaxConnections)

// ErrPartitionClosed reports a call that came after Close.
var ErrPartitionClosed = errors.New("partition closed")

// ConnectMessage makes messages that the guest posts to id go to a port of the host.
func (p *Partition) ConnectMessage(id hv.ConnectionID, to MessagePort) error {
	return p.connect(id, &port{typ: portMessage, id: hv.PortID(id), owner: p, messages: to})
}

// ConnectEvent makes signals of id with a flag number below flags go to a port of
// the host.
// A connection of one flag is given to the Doorbell for as long as a signal
// through it means the same to the guest: while the hypercall page is enabled
// and the partition may signal events.
func (p *Partition) ConnectEvent(id hv.ConnectionID, flags uint16, to EventPort) error {
	if flags == 0 || flags > hv.EventFlagCount {
		return fmt.Errorf("connection %#x: %d event flags: have 1 to %d", uint32(id), flags, hv.EventFlagCount)
	}
	return p.connect(id, &port{typ: portEvent, id: hv.PortID(id), owner: p, events: to, flagCount: flags})
}

// connect makes a connection of p to a port, which may be another partition's.
func (p *Partition) connect(id hv.ConnectionID, t *port) error {
	if err := checkConnectionID(id); err != nil {
		return err
	}
	p.connMu.Lock()
	defer p.connMu.Unlock()
	if p.dead.Load() {
		return fmt.Errorf("connection %#x: %w", uint32(id), ErrPartitionClosed)
	}
	old := *p.connections.Load()
	if old[id] != nil {
		return fmt.Errorf("connection %#x: %w", uint32(id), ErrConnectionInUse)
	}
	if len(old) >= MaxConnections {
		return fmt.Errorf("connection %#x: %w", uint32(id), ErrTooManyConnections)
	}
	c := &connection{id: id, port: t, idle: make(chan struct{})}
	m := maps.Clone(old)
	m[id] = c
	p.connections.Store(&m)
	p.syncDoorbell(c)
	return nil
}

// Disconnect ends the connection, if there is one, and waits until no
// HandleMessage or HandleEvent runs through it any more. It must not be called
// from one of these.
func (p *Partition) Disconnect(id hv.ConnectionID) {
	p.connMu.Lock()
	old := *p.connections.Load()
	c := old[id]
	if c != nil {
		m := maps.Clone(old)
		delete(m, id)
		p.connections.Store(&m)
		p.dropDoorbell(c)
	}
	p.connMu.Unlock()
	if c != nil {
		c.close()
	}
}

func (p *Partition) disconnectAll() {
	p.connMu.Lock()
	all := p.connections.Swap(&connections{})
	for _, c := range *all {
		p.dropDoorbell(c)
	}
	p.connMu.Unlock()
	for _, c := range *all {
		c.close()
	}
}

// lookup finds a connection and begins a call through it, or returns nil. The
// caller calls leave.
func (p *Partition) lookup(id hv.ConnectionID) *connection {
	c := (*p.connections.Load())[id]
	if c == nil || !c.enter() {
		return nil
	}
	return c
}

// syncDoorbells makes the doorbells fit the HYPERCALL register as it is now.
func (p *Partition) syncDoorbells() {
	if p.cfg.Doorbell == nil {
		return
	}
	p.connMu.Lock()
	defer p.connMu.Unlock()
	for _, c := range *p.connections.Load() {
		p.syncDoorbell(c)
	}
}

// syncDoorbell does so for one connection. connMu is held; p.hypercall is read
// under it, so that of two changes the later is seen by the later sync.
func (p *Partition) syncDoorbell(c *connection) {
	want := p.cfg.Doorbell != nil && p.has(hv.SignalEvents) && p.hypercallRegister().Enabled() &&
		c.port.typ == portEvent && c.port.events != nil && c.port.flagCount == 1
	switch {
	case want && !c.doorbell:
		if err := p.cfg.Doorbell.Add(c.id, c.ring); err != nil {
			// The hypercall serves it; only slower.
			p.log.printf("connection %#x: doorbell: %v", uint32(c.id), err)
			return
		}
		c.doorbell = true
	case !want:
		p.dropDoorbell(c)
	}
}

func (p *Partition) dropDoorbell(c *connection) {
	if c.doorbell {
		p.cfg.Doorbell.Remove(c.id)
		c.doorbell = false
	}
}
