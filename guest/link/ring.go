package link

import (
	"fmt"
	"sync/atomic"
)

// The window is split in two halves, guest->host ring first. Each half is a
// header page and then the ring's data:
//
//	0   u32 magic
//	4   u32 size of the data in bytes, a power of two
//	64  u32 write index, free running, stored by the writer
//	128 u32 read index, free running, stored by the reader
//	192 u32 reader waiting: set by the reader, taken by the writer
//	256 u32 writer waiting: set by the writer, taken by the reader
//
// Each word has a cache line of its own. The size is a power of two because a
// free-running 32-bit index modulo anything else jumps when it wraps.
const (
	ringMagic      = 0x51565048 // "HPVQ"
	ringMagicOff   = 0
	ringSizeOff    = 4
	ringWriteOff   = 64
	ringReadOff    = 128
	ringReaderWait = 192
	ringWriterWait = 256
	ringHeader     = 4096

	// minRingData keeps one full frame in the ring, so that a frame costs one
	// doorbell.
	minRingData = 128 << 10
	// maxRingData keeps index arithmetic far away from 2^31.
	maxRingData = 64 << 20
)

// windowMem is access to the shared window by offset in bytes. Offsets and
// lengths are this package's own, never the peer's; an access outside the
// window is a bug.
type windowMem interface {
	word(off uint32) *atomic.Uint32
	read(p []byte, off uint32)
	write(p []byte, off uint32)
	size() uint32
}

// ringData returns the size of the data of each ring in a window of size
// bytes: the largest power of two that fits behind the header in half of it.
func ringData(size uint32) (uint32, error) {
	half := size / 2
	if half < ringHeader+minRingData {
		return 0, fmt.Errorf("link window of %d bytes: needs at least %d", size, 2*(ringHeader+minRingData))
	}
	n := uint32(minRingData)
	for n*2 <= half-ringHeader && n*2 <= maxRingData {
		n *= 2
	}
	return n, nil
}

// layoutWindow writes the headers of both rings. The host does so before the
// guest runs. The flag that the host waits for the guest's first bytes is set
// from the start, so that these bytes ring.
func layoutWindow(m windowMem) error {
	data, err := ringData(m.size())
	if err != nil {
		return err
	}
	for _, base := range []uint32{0, m.size() / 2} {
		m.write(make([]byte, ringHeader), base)
		m.word(base + ringSizeOff).Store(data)
		m.word(base + ringMagicOff).Store(ringMagic)
	}
	m.word(ringReaderWait).Store(1)
	return nil
}

// openWindow returns the rings of a window that the other side laid out,
// guest->host and host->guest.
func openWindow(m windowMem) (gh, hg ring, err error) {
	for i, r := range []*ring{&gh, &hg} {
		half := m.size() / 2
		base := uint32(i) * half
		if magic := m.word(base + ringMagicOff).Load(); magic != ringMagic {
			return ring{}, ring{}, fmt.Errorf("link window: ring %d has magic %#x, not %#x", i, magic, ringMagic)
		}
		data := m.word(base + ringSizeOff).Load()
		if data < minRingData || data > half-ringHeader || data&(data-1) != 0 {
			return ring{}, ring{}, fmt.Errorf("link window: ring %d of %d bytes in %d", i, data, half)
		}
		*r = newRing(m, base, data)
	}
	return gh, hg, nil
}

// A ring is one direction of the window, without a view on it yet.
type ring struct {
	m      windowMem
	data   uint32 // offset of the data in the window
	size   uint32 // bytes of data, a power of two
	write  *atomic.Uint32
	read   *atomic.Uint32
	rwait  *atomic.Uint32
	wwait  *atomic.Uint32
	window string // for errors
}

func newRing(m windowMem, base, size uint32) ring {
	name := "guest->host"
	if base != 0 {
		name = "host->guest"
	}
	return ring{
		m: m, data: base + ringHeader, size: size, window: name,
		write: m.word(base + ringWriteOff), read: m.word(base + ringReadOff),
		rwait: m.word(base + ringReaderWait), wwait: m.word(base + ringWriterWait),
	}
}

// A ringWriter is the writing end. It keeps its own index to itself: the word
// in the window is for the peer, and what the peer does to it is no concern.
type ringWriter struct {
	ring
	w   uint32 // next byte to write
	r   uint32 // peer's read index as last seen and checked
	err error  // latched
}

// space loads the peer's index and returns the free bytes. The index may only
// move forward and not past what was written; anything else latches.
func (q *ringWriter) space() (uint32, error) {
	if q.err != nil {
		return 0, q.err
	}
	r := q.read.Load()
	if r-q.r > q.w-q.r {
		q.err = corruptf("%s ring: read index moved from %#x to %#x with write index %#x", q.window, q.r, r, q.w)
		return 0, q.err
	}
	q.r = r
	return q.size - (q.w - r), nil
}

// put copies as much of p as fits, publishes it, and reports how much and
// whether the reader wants to be rung.
func (q *ringWriter) put(p []byte) (n int, ring bool, err error) {
	free, err := q.space()
	if err != nil || free == 0 {
		return 0, false, err
	}
	n = min(len(p), int(free))
	off := q.w & (q.size - 1)
	k := min(n, int(q.size-off))
	q.m.write(p[:k], q.data+off)
	q.m.write(p[k:n], q.data)
	q.w += uint32(n)
	// Publish, then look at the flag; the reader sets the flag, then looks at
	// the index. Go's atomics are sequentially consistent, so one of the two
	// sees the other.
	q.write.Swap(q.w)
	return n, q.rwait.Load() != 0 && q.rwait.Swap(0) != 0, nil
}

// A ringReader is the reading end.
type ringReader struct {
	ring
	r   uint32 // next byte to read
	w   uint32 // peer's write index as last seen and checked
	err error  // latched
}

// avail loads the peer's index and returns the readable bytes.
func (q *ringReader) avail() (uint32, error) {
	if q.err != nil {
		return 0, q.err
	}
	w := q.write.Load()
	if w-q.r > q.size || w-q.r < q.w-q.r {
		q.err = corruptf("%s ring: write index moved from %#x to %#x with read index %#x, size %#x", q.window, q.w, w, q.r, q.size)
		return 0, q.err
	}
	q.w = w
	return w - q.r, nil
}

// get copies what there is into p, releases it, and reports how much and
// whether the writer wants to be rung. A writer that waits for space is rung
// when half the ring is free, not for every frame that leaves a full one; a
// reader always gets there, because it waits only on an empty ring.
func (q *ringReader) get(p []byte) (n int, ring bool, err error) {
	avail, err := q.avail()
	if err != nil || avail == 0 {
		return 0, false, err
	}
	n = min(len(p), int(avail))
	off := q.r & (q.size - 1)
	k := min(n, int(q.size-off))
	q.m.read(p[:k], q.data+off)
	q.m.read(p[k:n], q.data)
	q.r += uint32(n)
	q.read.Swap(q.r)
	left := avail - uint32(n)
	return n, left <= q.size/2 && q.wwait.Load() != 0 && q.wwait.Swap(0) != 0, nil
}
