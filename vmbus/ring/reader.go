package ring

import (
	"fmt"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// DefaultMaxPacket is the largest packet in bytes, without trailer, that a
// Reader takes unless it is told otherwise: 16 KiB of hv_sock data with its
// header, or a storvsc request over 2 MiB of pages, and room for ranges.
const DefaultMaxPacket = 20 << 10

// batchBytes is how much a Reader copies out of the ring at once, if that much
// is there: enough to make the costs per copy vanish for small packets.
const batchBytes = 16 << 10

// A Reader is the reading end of a ring. One goroutine may use it at a time.
type Reader struct {
	pages
	scratch
	hdr    header
	signal func()
	limit  int // bytes of the largest packet, trailer included
	err    error

	// The ring's bytes from index out up to fetched are in buf[head:tail]. The
	// peer's write index was in when it was last looked at, which happens only
	// when everything before it is consumed. published is what the peer knows
	// of out.
	out, fetched, in, published uint32
	buf                         []byte
	head, tail                  int
}

// NewReader returns the reading end of the ring in the given pages, at the
// indices that its header holds. maxPacket bounds a packet in bytes without
// trailer; 0 means DefaultMaxPacket. signal is called when the protocol
// demands a signal to a writer that waits for room.
func NewReader(mem *guest.Memory, pfns []uint64, maxPacket int, signal func()) (*Reader, error) {
	d, h, err := open(mem, pfns)
	if err != nil {
		return nil, err
	}
	if maxPacket <= 0 {
		maxPacket = DefaultMaxPacket
	}
	r := &Reader{pages: d, hdr: h, signal: signal, limit: maxPacket + proto.TrailerSize}
	start, in := h.read.Load(), h.write.Load()
	if !d.valid(start) || !d.valid(in) {
		return nil, fmt.Errorf("%w: indices %#x and %#x of %#x at the start", ErrCorrupt, in, start, d.size)
	}
	r.out, r.fetched, r.in, r.published = start, start, start, start
	r.buf = make([]byte, min(max(r.limit, batchBytes), int(d.size)))
	return r, nil
}

// fail latches err.
func (r *Reader) fail(err error) error {
	if r.err == nil {
		r.err = err
	}
	return r.err
}

// Err returns what ended the ring, or nil.
func (r *Reader) Err() error { return r.err }

// Next takes the next packet into p, as a copy that stays valid until the next
// call, and reports whether there was one. Before it looks for new packets it
// gives the room of those already taken back to the writer (Commit).
func (r *Reader) Next(p *Packet) (bool, error) {
	if r.err != nil {
		return false, r.err
	}
	for {
		if b := r.buf[r.head:r.tail]; len(b) >= proto.DescriptorSize {
			d := proto.DecodeDescriptor(b)
			if err := checkDescriptor(d); err != nil {
				return false, r.fail(err)
			}
			n := 8*int(d.Length8) + proto.TrailerSize
			if n > r.limit {
				return false, r.fail(fmt.Errorf("%w: packet of %d bytes, at most %d are taken", ErrCorrupt, n-proto.TrailerSize, r.limit-proto.TrailerSize))
			}
			if n <= len(b) {
				if err := r.parse(p, d, b[:n-proto.TrailerSize]); err != nil {
					return false, r.fail(err)
				}
				r.head += n
				r.out = r.add(r.out, uint32(n))
				return true, nil
			}
		}
		if r.fetched == r.in {
			if r.head != r.tail {
				return false, r.fail(fmt.Errorf("%w: packet reaches past write index %#x", ErrCorrupt, r.in))
			}
			r.Commit()
			if more, err := r.look(); !more {
				return false, err
			}
		}
		if err := r.fetch(); err != nil {
			return false, err
		}
	}
}

// look loads the peer's write index and reports whether there is something to
// fetch. Preconditions: everything before the last known index is consumed.
func (r *Reader) look() (bool, error) {
	in := r.hdr.write.Load()
	if !r.valid(in) {
		return false, r.fail(fmt.Errorf("%w: write index %#x of %#x", ErrCorrupt, in, r.size))
	}
	r.in = in
	return in != r.out, nil
}

// fetch copies more bytes of the ring behind those already there. The buffer
// holds the largest packet, so it makes progress whenever a packet is not
// whole yet.
func (r *Reader) fetch() error {
	copy(r.buf, r.buf[r.head:r.tail])
	r.head, r.tail = 0, r.tail-r.head
	n := min(int(r.dist(r.fetched, r.in)), len(r.buf)-r.tail)
	if n == 0 {
		return r.fail(fmt.Errorf("%w: packet larger than the ring", ErrCorrupt))
	}
	if err := r.readAt(r.buf[r.tail:r.tail+n], r.fetched); err != nil {
		return r.fail(err)
	}
	r.tail += n
	r.fetched = r.add(r.fetched, uint32(n))
	return nil
}

// Commit publishes how far the Reader has come, and signals a writer that
// waits for as much room as there is now. Next does it in time for a loop that
// drains the ring; call it before doing something else for long.
func (r *Reader) Commit() {
	if r.out == r.published {
		return
	}
	freed := int64(r.dist(r.published, r.out))
	r.published = r.out
	r.hdr.read.Swap(r.out) // a full barrier, too: the writer arms first and looks then
	// Some guests write the size of the ring less one.
	pending := int64(r.hdr.pending.Load() &^ 7)
	if pending == 0 {
		return
	}
	in := r.hdr.write.Load()
	if !r.valid(in) {
		return // the next look latches it
	}
	free := int64(r.size - r.dist(r.out, in))
	// Linux wants more than pending, others at least pending. Both ends of the
	// crossing are inclusive so that neither misses its signal.
	if free-freed <= pending && free >= pending && r.signal != nil {
		r.signal()
	}
}

// Mask asks the writer not to signal new packets.
func (r *Reader) Mask() { r.hdr.mask.Store(1) }

// Unmask asks the writer to signal again when the ring becomes non-empty, and
// reports whether it already is: a packet written before the writer saw the
// change comes without a signal.
func (r *Reader) Unmask() (more bool, err error) {
	r.hdr.mask.Swap(0) // a full barrier, too
	if r.err != nil {
		return false, r.err
	}
	if r.out != r.in {
		return true, nil
	}
	return r.look()
}
