package ring

import (
	"fmt"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// stageBytes is how much a Writer collects before it copies to the ring.
// Larger payloads are copied from where they are.
const stageBytes = 4 << 10

// maxUnits is the most units of 8 bytes that a descriptor can count.
const maxUnits = 0xFFFF

var zeros [8]byte

// A Writer is the writing end of a ring. One goroutine may use it at a time;
// only Unread may be called from others.
type Writer struct {
	pages
	hdr    header
	signal func()
	err    error
	armed  bool // pending_send_sz is set

	// in is where the next packet goes. The peer knows of published. It had
	// read up to out when that was last looked at. The bytes before in that
	// are not in the ring yet are in stage, and belong at stageAt.
	in, published, out uint32
	stage              []byte
	stageAt            uint32
}

// NewWriter returns the writing end of the ring in the given pages, at the
// indices that its header holds. signal is called when the protocol demands a
// signal for published packets.
func NewWriter(mem *guest.Memory, pfns []uint64, signal func()) (*Writer, error) {
	d, h, err := open(mem, pfns)
	if err != nil {
		return nil, err
	}
	in, out := h.write.Load(), h.read.Load()
	if !d.valid(in) || !d.valid(out) {
		return nil, fmt.Errorf("%w: indices %#x and %#x of %#x at the start", ErrCorrupt, in, out, d.size)
	}
	h.features.Or(featurePendingSend)
	return &Writer{pages: d, hdr: h, signal: signal, in: in, published: in, out: out,
		stage: make([]byte, 0, stageBytes), stageAt: in}, nil
}

// fail latches err.
func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}

// Err returns what ended the ring, or nil.
func (w *Writer) Err() error { return w.err }

// look loads how far the peer has read. It may only have come closer to what
// was published; anything else would pass for room that is not there.
func (w *Writer) look() error {
	out := w.hdr.read.Load()
	if !w.valid(out) || w.dist(out, w.published) > w.dist(w.out, w.published) {
		return w.fail(fmt.Errorf("%w: read index went from %#x to %#x of %#x, written up to %#x", ErrCorrupt, w.out, out, w.size, w.published))
	}
	w.out = out
	return nil
}

// fits reports whether n bytes fit as far as is known. The ring is never
// filled completely: a full one would look empty.
func (w *Writer) fits(n int) bool { return int(w.size-w.dist(w.out, w.in)) > n }

// Put writes p behind the packets already there, for Publish to show to the
// peer. ErrFull means: publish, then Await. ErrTooBig is no fault of the peer.
func (w *Writer) Put(p *Packet) error {
	if w.err != nil {
		return w.err
	}
	n := p.Size()
	if n >= int(w.size) || (n-proto.TrailerSize)/8 > maxUnits {
		return fmt.Errorf("%w: %d bytes", ErrTooBig, n)
	}
	if !w.fits(n) {
		if err := w.look(); err != nil {
			return err
		}
		if !w.fits(n) {
			return ErrFull
		}
	}
	if w.armed {
		w.disarm()
	}
	start := w.in
	if len(w.stage)+n > stageBytes {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.stage = p.appendHead(w.stage)
	if n > stageBytes {
		if err := w.flush(); err != nil {
			return err
		}
		if err := w.writeAt(p.Payload, w.stageAt); err != nil {
			return w.fail(err)
		}
		w.stageAt = w.add(w.stageAt, uint32(len(p.Payload)))
	} else {
		w.stage = append(w.stage, p.Payload...)
	}
	w.stage = append(w.stage, zeros[:-len(p.Payload)&7]...)
	w.stage = append(w.stage, 0, 0, 0, 0, byte(start), byte(start>>8), byte(start>>16), byte(start>>24))
	w.in = w.add(start, uint32(n))
	return nil
}

// flush copies the staged bytes to the ring.
func (w *Writer) flush() error {
	if len(w.stage) == 0 {
		return nil
	}
	if err := w.writeAt(w.stage, w.stageAt); err != nil {
		return w.fail(err)
	}
	w.stageAt = w.add(w.stageAt, uint32(len(w.stage)))
	w.stage = w.stage[:0]
	return nil
}

// Publish shows the packets put so far to the peer, and signals it if it had
// read everything before and has not masked signals.
func (w *Writer) Publish() error {
	if w.err != nil || w.in == w.published {
		return w.err
	}
	if err := w.flush(); err != nil {
		return err
	}
	old := w.published
	w.published = w.in
	w.hdr.write.Swap(w.in) // a full barrier, too: the reader unmasks first and looks then
	if w.hdr.mask.Load() == 0 && w.hdr.read.Load() == old && w.signal != nil {
		w.signal()
	}
	return nil
}

// Write is Put and Publish.
func (w *Writer) Write(p *Packet) error {
	if err := w.Put(p); err != nil {
		return err
	}
	return w.Publish()
}

// Await asks the peer for a signal when p will fit, and reports whether it
// already does. Preconditions: everything is published, or the peer could wait
// for data while the caller waits for room.
func (w *Writer) Await(p *Packet) (room bool, err error) {
	if w.err != nil {
		return false, w.err
	}
	n := p.Size()
	// One unit more than needed serves readers that signal at equality as well
	// as Linux, which signals above it. An empty ring always is above.
	w.hdr.pending.Swap(min(uint32(n)+8, w.size-8)) // a full barrier, too
	w.armed = true
	if err := w.look(); err != nil {
		return false, err
	}
	return w.fits(n), nil
}

// Cancel ends an Await whose caller gave up.
func (w *Writer) Cancel() {
	if w.armed {
		w.disarm()
	}
}

func (w *Writer) disarm() {
	w.hdr.pending.Store(0)
	w.armed = false
}

// Unread reports whether there are published packets that the peer has not
// read although it takes signals. Any goroutine may ask; the answer is the
// peer's word.
func (w *Writer) Unread() bool {
	return w.hdr.mask.Load() == 0 && w.hdr.read.Load() != w.hdr.write.Load()
}
