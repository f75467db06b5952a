package synic

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/hvpost/hvpost/synic/hv"
)

// PortBuffers is the number of message buffers of a port: how many messages
// may wait for their slots (TLFS "Port").
const PortBuffers = 16

// MaxConnections bounds the connections of a partition. Each synthetic
// device channel has one; a server offers at most 2048 channels.
const MaxConnections = 4096

// A portType is HV_PORT_TYPE.
type portType uint8

const (
	portMessage portType = 1
	portEvent   portType = 2
)

// A port is the receiving end of connections. The port of a guest names a VP
// and a SINT; the port of the host has a handler instead.
type port struct {
	typ   portType
	id    hv.PortID
	owner *Partition
	dead  atomic.Bool // deleted

	// The host's.
	messages MessagePort
	events   EventPort

	// The guest's.
	sint uint8
	vp   hv.VPIndex // where posts through a connection go, may be hv.VPAny
	free func()

	firstFlag uint16 // events: of the SINT's flags
	flagCount uint16 // events: 1 at least

	used    atomic.Uint32 // one bit per buffer
	starved atomic.Bool   // somebody was refused a buffer and waits for free
	buffers [PortBuffers]buffer
}

// newMessagePort makes a port to a SINT of owner's VPs.
func newMessagePort(owner *Partition, id hv.PortID, sint uint8, vp hv.VPIndex, free func()) *port {
	t := &port{typ: portMessage, id: id, owner: owner, sint: sint, vp: vp, free: free}
	for i := range t.buffers {
		t.buffers[i].port = t
		t.buffers[i].number = uint8(i)
	}
	owner.portsMu.Lock()
	defer owner.portsMu.Unlock()
	owner.ports[t] = struct{}{}
	if owner.dead.Load() {
		t.dead.Store(true)
	}
	return t
}

// take returns a free buffer, or nil.
func (t *port) take() *buffer {
	for {
		used := t.used.Load()
		n := bits.TrailingZeros32(^used)
		if n >= PortBuffers {
			return nil
		}
		if t.used.CompareAndSwap(used, used|1<<n) {
			return &t.buffers[n]
		}
	}
}

// takeOrStarve is take that leaves word if there is no buffer. It looks again
// after having done so, because a buffer that became free in between told
// nobody.
func (t *port) takeOrStarve() *buffer {
	if b := t.take(); b != nil {
		return b
	}
	t.starved.Swap(true)
	return t.take()
}

// put makes b free again and returns what to call, if anything.
func (t *port) put(b *buffer) func() {
	t.used.And(^(uint32(1) << b.number))
	if t.starved.Load() && t.starved.Swap(false) && !t.dead.Load() {
		return t.free
	}
	return nil
}

// post sends m to the port. The checks come in the order of the table of
// HvCallPostMessage; m's content has been checked.
func (t *port) post(vp hv.VPIndex, m *hv.Message) hv.Status {
	if t.dead.Load() || t.owner.dead.Load() {
		return hv.StatusInvalidPortID
	}
	if t.messages != nil {
		m := *m
		m.Origin = uint64(t.id)
		return t.messages.HandleMessage(m)
	}
	b := t.takeOrStarve()
	if b == nil {
		return hv.StatusInsufficientBuffers
	}
	b.msg = *m
	b.msg.Origin = uint64(t.id)
	var after deferred
	st := t.enqueue(vp, b, &after)
	if st != hv.StatusSuccess {
		after.add(b.release())
	}
	after.run()
	return st
}

// enqueue hands b to a VP, whose it is when the status says success.
func (t *port) enqueue(vp hv.VPIndex, b *buffer, after *deferred) hv.Status {
	v := t.owner.target(vp, (*VP).acceptsMessages)
	if v == nil {
		return hv.StatusInvalidVPIndex
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	// Under the lock, because close sets it and then clears the queues.
	if t.dead.Load() || v.dead {
		return hv.StatusInvalidPortID
	}
	if !v.acceptsMessages() {
		return hv.StatusInvalidSynICState
	}
	v.send(t.sint, b, after)
	return hv.StatusSuccess
}

// signal sets flag number flag of the port, counted from its first.
func (t *port) signal(flag uint16) hv.Status {
	if t.dead.Load() || t.owner.dead.Load() {
		return hv.StatusInvalidPortID
	}
	if flag >= t.flagCount {
		return hv.StatusInvalidParameter
	}
	if t.events != nil {
		t.events.HandleEvent(flag)
		return hv.StatusSuccess
	}
	return t.owner.SignalEvent(t.vp, t.sint, t.firstFlag+flag)
}

// close deletes the port. Its queued messages are dropped; one that is in a
// slot stays there.
func (t *port) close() {
	if t.dead.Swap(true) {
		return
	}
	p := t.owner
	p.portsMu.Lock()
	delete(p.ports, t)
	p.portsMu.Unlock()
	if t.typ != portMessage || t.messages != nil || !validSINT(t.sint) {
		return
	}
	var after deferred
	for _, v := range p.vps {
		v.mu.Lock()
		v.drop(t.sint, func(b *buffer) bool { return b.port == t }, &after)
		v.mu.Unlock()
	}
	after.run()
}

func (p *Partition) closePorts() {
	p.portsMu.Lock()
	var all []*port
	for t := range p.ports {
		all = append(all, t)
	}
	p.portsMu.Unlock()
	for _, t := range all {
		t.close()
	}
}

// A SendPort is the host's way to send messages to a SINT of a partition: a
// port with PortBuffers message buffers of its own.
type SendPort struct{ port *port }

// OpenMessagePort makes a port that posts to a SINT, 1 to 15, of any VP of the
// partition. A guest may have chosen the SINT; with another one every Post
// answers hv.StatusInvalidParameter.
//
// free, which may be nil, is called with no lock held when a buffer has become
// free after Post had answered hv.StatusInsufficientBuffers. It runs on
// whatever goroutine made that happen, so it should do no more than wake the
// sender. It may be called without need, and may still be running when Close
// returns.
func (p *Partition) OpenMessagePort(id hv.PortID, sint uint8, free func()) *SendPort {
	return &SendPort{newMessagePort(p, id, sint, hv.VPAny, free)}
}

// Post sends m to a VP; its Origin becomes the port's id. hv.StatusSuccess
// means that m is in the slot or in the queue for it. Messages of one port to
// one VP arrive in the order of the calls; hv.VPAny picks any VP whose SynIC
// is on. Post never blocks. Its other results, in the order of the checks:
//
//   - hv.StatusInvalidParameter: message type 0 or with bit 31 set, payload
//     over 240 bytes, SINT 0 or over 15
//   - hv.StatusInvalidPortID: the port or the partition is closed
//   - hv.StatusInsufficientBuffers: all buffers wait for the guest
//   - hv.StatusInvalidVPIndex: there is no such VP, or none that accepts
//     messages for hv.VPAny
//   - hv.StatusInvalidSynICState: the VP's SynIC or message page is off
func (s *SendPort) Post(vp hv.VPIndex, m hv.Message) hv.Status {
	if !validSINT(s.port.sint) || !validMessage(m.Type, uint32(m.Size)) {
		return hv.StatusInvalidParameter
	}
	return s.port.post(vp, &m)
}

// Close deletes the port and drops what is still queued, but not what is in a
// slot already.
func (s *SendPort) Close() { s.port.close() }

// validMessage reports whether a message may be posted (TLFS
// "HvCallPostMessage"): bit 31 of the type is the hypervisor's.
func validMessage(t hv.MessageType, size uint32) bool {
	return t != hv.MessageNone && t>>31 == 0 && size <= hv.MaxPayload
}

var errConnectionID = errors.New("ids have 24 bits")

func checkConnectionID(id hv.ConnectionID) error {
	if id&^hv.IDMask != 0 {
		return fmt.Errorf("connection %#x: %w", uint32(id), errConnectionID)
	}
	return nil
}
