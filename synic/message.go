package synic

import (
	"encoding/binary"

	"github.com/hvpost/hvpost/synic/hv"
)

// A buffer holds one message on its way to a slot. It belongs to a port or to
// a timer, which has it back when the message is in the slot or dropped.
type buffer struct {
	next   *buffer
	msg    hv.Message
	port   *port // or
	timer  *timer
	number uint8 // in the port
	queued bool  // timers only: in a queue
}

// A queue is the messages that wait for one slot, oldest first. Its length is
// bounded by the buffers of the ports and timers that feed it.
type queue struct{ head, tail *buffer }

func (q *queue) push(b *buffer) {
	b.next = nil
	if q.tail == nil {
		q.head = b
	} else {
		q.tail.next = b
	}
	q.tail = b
}

func (q *queue) pop() *buffer {
	b := q.head
	q.head = b.next
	if q.head == nil {
		q.tail = nil
	}
	b.next = nil
	return b
}

// acceptsMessages reports whether the SynIC and its message page are on. mu is
// held.
func (v *VP) acceptsMessages() bool {
	return !v.dead && v.scontrol&hv.SCONTROLEnable != 0 && v.simp.Enabled()
}

// send queues b for a SINT and delivers what can be delivered. mu is held.
func (v *VP) send(sint uint8, b *buffer, after *deferred) {
	v.queue[sint].push(b)
	v.deliver(sint, after)
}

// slotFree reports whether a slot is empty. If not, it asks the guest to write
// EOM when it has emptied the slot, and then looks again: the guest may have
// done so before it could see the request, and would never write EOM.
func slotFree[W interface {
	Load() uint32
	Or(uint32) uint32
}](typ, header W) bool {
	if typ.Load() == 0 {
		return true
	}
	header.Or(hv.SlotPending)
	return typ.Load() == 0
}

// deliver moves the oldest message of a queue into its slot if the slot is
// empty (TLFS "SynIC Message Delivery"). mu is held.
//
// One message is enough. If more are waiting, the one that goes into the slot
// carries the request from the start.
func (v *VP) deliver(sint uint8, after *deferred) {
	q := &v.queue[sint]
	if q.head == nil || !v.acceptsMessages() {
		return
	}
	slot := hv.SlotOffset(sint)
	typ := v.simPage.word(slot + hv.SlotType)
	header := v.simPage.word(slot + hv.SlotSizeOff)
	if !slotFree(typ, header) {
		return
	}
	b := q.pop()
	if b.timer != nil {
		b.timer.stamp(&b.msg, v.p.cfg.Clock.Now())
	}
	var body [8 + hv.MaxPayload]byte
	binary.LittleEndian.PutUint64(body[:], b.msg.Origin)
	n := 8 + copy(body[8:], b.msg.Bytes())
	v.simPage.write(slot+hv.SlotOrigin, body[:n])
	word := uint32(b.msg.Size)
	if q.head != nil {
		word |= hv.SlotPending
	}
	header.Store(word)
	// The type makes the slot the guest's; it must be the last store.
	typ.Store(uint32(b.msg.Type))
	after.add(b.release())
	v.raise(sint, after)
}

// deliverAll gives every slot a chance: at EOM, EOI, and when the SynIC or its
// message page was switched on. mu is held.
func (v *VP) deliverAll(after *deferred) {
	for n := range v.queue {
		v.deliver(uint8(n), after)
	}
}

// drop removes the messages of a queue for which f holds. mu is held.
func (v *VP) drop(sint uint8, f func(*buffer) bool, after *deferred) {
	var kept queue
	q := &v.queue[sint]
	for q.head != nil {
		b := q.pop()
		if f(b) {
			after.add(b.release())
		} else {
			kept.push(b)
		}
	}
	*q = kept
}

// release gives the buffer back to its owner. The result, if any, is to be
// called without locks.
func (b *buffer) release() func() {
	if b.timer != nil {
		b.queued = false
		return nil
	}
	return b.port.put(b)
}
